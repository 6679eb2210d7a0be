import assert from "node:assert/strict"
import { test } from "node:test"
import { CELLS, cellsOf, sinceTime, timeOf } from "../src/pure/timecode.ts"

const TIMES = [0, 1, 999, 65_536, 1_048_575, 523_123]
const shown = (ms: number, dark: number, light: number) => cellsOf(ms).map((cell) => (cell ? light : dark))

test("a time is read back", () => {
  for (const ms of TIMES) assert.equal(timeOf(shown(ms, 16, 235)), ms)
})

test("a dim and a bright picture can be read too", () => {
  for (const ms of TIMES) {
    assert.equal(timeOf(shown(ms, 20, 60)), ms)
    assert.equal(timeOf(shown(ms, 190, 250)), ms)
  }
})

test("a grey picture carries no time", () => {
  assert.equal(timeOf(Array.from({ length: CELLS }, () => 128)), null)
  assert.equal(timeOf([]), null)
})

test("one wrong bit is noticed, and so are two, wherever they are", () => {
  for (let bit = 0; bit < CELLS; bit += 2) {
    for (let other = bit; other < CELLS; other += 2) {
      const cells = shown(523_123, 16, 235)
      for (const wrong of new Set([bit, other])) {
        ;[cells[wrong], cells[wrong + 1]] = [cells[wrong + 1] ?? 0, cells[wrong] ?? 0]
      }
      assert.equal(timeOf(cells), null, `bits ${bit / 2} and ${other / 2}`)
    }
  }
})

test("a painting is seldom taken for a time", () => {
  let taken = 0
  for (let picture = 0; picture < 2000; picture++) {
    let state = (picture + 1) * 2654435761
    const next = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return state >>> 24
    }
    if (timeOf(Array.from({ length: CELLS }, next)) !== null) taken++
  }
  assert.ok(taken < 20, `${taken} of 2000`)
})

test("an age is right where the code starts again", () => {
  assert.equal(sinceTime(1_048_576 + 30, 1_048_570), 36)
})
