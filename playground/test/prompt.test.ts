import assert from "node:assert/strict"
import { test } from "node:test"
import { blendOf, promptOf } from "../src/pure/prompt.ts"

test("one text is sent as it is", () => {
  assert.equal(promptOf({ first: "neon", second: null, share: 0.5 }), "neon")
  assert.equal(promptOf({ first: "neon", second: "  ", share: 0.5 }), "neon")
})

test("two texts are sent with their shares", () => {
  assert.deepEqual(promptOf({ first: "a", second: "b", share: 0.4 }), [
    ["a", 0.6],
    ["b", 0.4],
  ])
})

test("at either end of the slider there is one text", () => {
  assert.equal(promptOf({ first: "a", second: "b", share: 0 }), "a")
  assert.equal(promptOf({ first: "a", second: "b", share: 1 }), "b")
  assert.equal(promptOf({ first: " ", second: "b", share: 0.5 }), "b")
})

test("a blend survives the way there and back", () => {
  for (const share of [0.01, 0.25, 0.5, 0.87]) {
    const blend = { first: "a", second: "b", share }
    assert.deepEqual(blendOf(promptOf(blend)), blend)
  }
})

test("of many texts the two heaviest are shown, in their order", () => {
  const prompt = [["thin", 0.1], { text: "b", weight: 1 }, ["a", 3]]
  assert.deepEqual(blendOf(prompt), { first: "b", second: "a", share: 0.75 })
})

test("a text without a weight weighs one, and texts that all weigh nothing are halves", () => {
  assert.deepEqual(blendOf([{ text: "a" }, ["b", 1]]), { first: "a", second: "b", share: 0.5 })
  assert.equal(
    blendOf([
      ["a", 0],
      ["b", 0],
    ]).share,
    0.5,
  )
})

test("what is no prompt is an empty one", () => {
  assert.equal(blendOf(undefined).first, "")
  assert.equal(blendOf([]).first, "")
})
