import assert from "node:assert/strict"
import { test } from "node:test"
import { readJson, textOf } from "../src/pure/json.ts"
import { controlsOf, type JsonControl } from "../src/pure/schema.ts"

function json(property: Record<string, unknown>): JsonControl {
  const [control] = controlsOf({ properties: { it: property } })
  assert.ok(control?.kind === "json")
  return control
}
const whole = { type: "integer", minimum: 0, maximum: 9 }
const seed = json({ anyOf: [whole, { type: "array" }], default: 7 })

test("what is short stands on one line, what is long on several", () => {
  assert.equal(textOf([12, 20, 32]), "[12, 20, 32]")
  assert.equal(textOf({ "a,b": "c:d", e: [] }), '{"a,b": "c:d", "e": []}')
  assert.equal(textOf(undefined), "null")
  assert.ok(textOf([{ model_id: "a".repeat(60) }]).includes("\n"))
})

test("whatever is shown is read back as it was", () => {
  for (const value of [null, 7, [], {}, [[1, 0.5]], { a: "line\nbreak [ {", b: { c: [1, "x"] } }]) {
    assert.deepEqual(readJson(textOf(value), json({})), { ok: true, value })
  }
})

test("what is half typed is not sent, and says that it is no JSON yet", () => {
  for (const typed of ["", "[1,", "{'a': 1}"]) {
    const read = readJson(typed, seed)
    assert.ok(!read.ok && read.problem.startsWith("Not JSON yet"))
  }
})

test("a value of another type is not sent, and the problem says which is expected", () => {
  assert.deepEqual(readJson("[[1, 1]]", seed), { ok: true, value: [[1, 1]] })
  for (const typed of ["1.5", '"7"', "null", "{}"]) assert.ok(!readJson(typed, seed).ok)
  const read = readJson("7", json({ type: ["object", "null"] }))
  assert.ok(!read.ok)
  assert.equal(read.problem, 'An object, such as {"a": 1} or null is expected here.')
  assert.ok(readJson("null", json({ type: ["object", "null"] })).ok)
})

test("a list that an alternative leaves open takes anything", () => {
  assert.ok(readJson('"x"', json({ anyOf: [{ type: "array" }, { $ref: "#/a" }] })).ok)
})

test("a seed that may be a list as well has a dice", () => {
  assert.deepEqual(seed.dice, { minimum: 0, maximum: 9 })
  assert.equal(json({ type: "array" }).dice, null)
})
