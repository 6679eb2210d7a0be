import assert from "node:assert/strict"
import { afterEach, beforeEach, mock, test } from "node:test"
import type { Params } from "../src/pure/schema.ts"
import { Steering } from "../src/pure/steering.ts"

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }))
afterEach(() => mock.timers.reset())

const settle = async () => {
  for (let turn = 0; turn < 5; turn++) await Promise.resolve()
}

test("changes within a moment are one request, in which the newest value wins", async () => {
  const sent: Params[] = []
  const steering = new Steering(async (patch) => void sent.push(patch), 100)
  steering.set({ strength: 0.1 })
  mock.timers.tick(60)
  steering.set({ strength: 0.2, seed: 1 })
  assert.deepEqual(sent, [])
  mock.timers.tick(40)
  await settle()
  assert.deepEqual(sent, [{ strength: 0.2, seed: 1 }])
})

test("while a request is under way nothing else is sent, and afterwards the newest", async () => {
  const sent: Params[] = []
  let answer = () => {}
  const steering = new Steering((patch) => {
    sent.push(patch)
    return new Promise((resolve) => {
      answer = resolve
    })
  }, 100)
  steering.set({ strength: 0.1 })
  mock.timers.tick(100)
  steering.set({ strength: 0.2 })
  mock.timers.tick(1000)
  steering.set({ strength: 0.3 })
  await settle()
  assert.deepEqual(sent, [{ strength: 0.1 }])
  answer()
  await settle()
  mock.timers.tick(100)
  assert.deepEqual(sent, [{ strength: 0.1 }, { strength: 0.3 }])
})

test("what was cleared is not sent", async () => {
  const sent: Params[] = []
  const steering = new Steering(async (patch) => void sent.push(patch), 100)
  steering.set({ strength: 0.1 })
  steering.clear()
  mock.timers.tick(1000)
  await settle()
  assert.deepEqual(sent, [])
})
