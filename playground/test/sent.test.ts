import assert from "node:assert/strict"
import { test } from "node:test"
import { Sent } from "../src/pure/sent.ts"

test("a refused change goes back to what was there before", () => {
  const sent = new Sent({ a: 1, b: 1 })
  sent.accepted(2, { a: 2 })
  sent.accepted(3, { b: 2 })
  assert.deepEqual(sent.refused(3), { b: 1 })
  assert.deepEqual(sent.refused(2), { a: 1 })
})

test("what was changed again meanwhile stays, and goes back to before both if it is refused too", () => {
  const sent = new Sent({ a: 1, b: 1 })
  sent.accepted(2, { a: 2, b: 2 })
  sent.accepted(3, { a: 3 })
  assert.deepEqual(sent.refused(2), { b: 1 })
  assert.deepEqual(sent.refused(3), { a: 1 })
})

test("a refusal may be quicker than the answer to the request", () => {
  const sent = new Sent({ a: 1 })
  assert.equal(sent.refused(2), null)
  assert.deepEqual(sent.accepted(2, { a: 2 }), { a: 1 })
  assert.equal(sent.accepted(3, { a: 3 }), null)
  assert.deepEqual(sent.refused(3), { a: 1 })
})

test("somebody else's change is none of the page's", () => {
  const sent = new Sent({ a: 1 })
  sent.accepted(3, { a: 2 })
  assert.equal(sent.refused(2), null)
})
