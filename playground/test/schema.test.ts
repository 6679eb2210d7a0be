import assert from "node:assert/strict"
import { test } from "node:test"
import { changedFrom, controlsOf, initialOf, labelOf, niceStep } from "../src/pure/schema.ts"

const one = (property: Record<string, unknown>) => {
  const [control] = controlsOf({ properties: { it: property } })
  assert.ok(control)
  return control
}

test("a number with both bounds is a slider with about a hundred places", () => {
  const control = one({ type: "number", minimum: 0, maximum: 1, default: 0.5 })
  assert.deepEqual([control.kind, control.initial], ["range", 0.5])
  assert.ok(control.kind === "range" && control.step === 0.01)
})

test("a whole number moves by one", () => {
  const control = one({ type: "integer", minimum: 1, maximum: 50, default: 4 })
  assert.ok(control.kind === "range" && control.step === 1)
})

test("a seed has too many places for a slider", () => {
  const control = one({ type: "integer", minimum: 0, maximum: 2 ** 32 - 1, default: 0 })
  assert.equal(control.kind, "number")
})

test("a number without bounds is a field", () => {
  const control = one({ type: "number", minimum: 0, default: 3 })
  assert.ok(control.kind === "number" && control.step === "any" && control.maximum === undefined)
})

test("bounds that exclude themselves are moved in for whole numbers", () => {
  const control = one({ type: "integer", exclusiveMinimum: 0, exclusiveMaximum: 10 })
  assert.ok(
    control.kind === "range" && control.minimum === 1 && control.maximum === 9 && control.initial === 1,
  )
})

test("multipleOf is the step", () => {
  const control = one({ type: "integer", minimum: 64, maximum: 1024, multipleOf: 64, default: 512 })
  assert.ok(control.kind === "range" && control.step === 64)
})

test("choices of any type are a menu", () => {
  const control = one({ type: "integer", enum: [1, 2, 4], default: 2 })
  assert.ok(control.kind === "choice")
  assert.deepEqual([control.options, control.initial], [[1, 2, 4], 2])
})

test("a boolean is a switch, and a text a field with its length", () => {
  assert.equal(one({ type: "boolean", default: true }).initial, true)
  const control = one({ type: "string", maxLength: 80, default: "cat" })
  assert.ok(control.kind === "text" && control.maxLength === 80)
})

test("a text or weighted texts are a prompt", () => {
  const control = one({ anyOf: [{ type: "string", maxLength: 2000 }, { type: "array" }], default: "neon" })
  assert.ok(control.kind === "prompt" && control.maxLength === 2000 && control.initial === "neon")
})

test("what may be null as well is what it is otherwise", () => {
  assert.equal(one({ anyOf: [{ type: "integer", minimum: 0, maximum: 9 }, { type: "null" }] }).kind, "range")
})

test("a list of types is the one of them that is not null", () => {
  assert.equal(one({ type: ["string", "null"], default: "" }).kind, "text")
  assert.equal(one({ type: ["integer", "null"], minimum: 0, maximum: 9 }).kind, "range")
  assert.equal(one({ type: ["string", "integer"] }).kind, "json")
})

test("what can have one value only is nothing to set", () => {
  assert.deepEqual(controlsOf({ properties: { it: { type: "boolean", const: false, default: false } } }), [])
})

test("what no control fits is edited as JSON", () => {
  assert.equal(one({ type: "object", default: {} }).kind, "json")
  assert.equal(one({}).kind, "json")
})

test("how a parameter takes effect is live unless it says otherwise", () => {
  assert.equal(one({ type: "boolean" }).apply, "live")
  assert.equal(one({ type: "boolean", "x-apply": "reload" }).apply, "reload")
  assert.equal(one({ type: "boolean", "x-apply": "someday" }).apply, "live")
})

test("a name becomes a label, and its unit stands in brackets", () => {
  assert.equal(labelOf("transition_s", {}), "Transition (s)")
  assert.equal(labelOf("guidance_scale", {}), "Guidance scale")
  assert.equal(labelOf("s", {}), "S")
  assert.equal(labelOf("lcm_lora_id", {}), "LCM LoRA ID")
  assert.equal(labelOf("steps", { title: "Denoising steps" }), "Denoising steps")
})

test("a slider has between a hundred and a thousand places", () => {
  for (const span of [0.3, 1, 2, 7.5, 99, 100, 250, 5000]) {
    const places = span / niceStep(span)
    assert.ok(places >= 99.9 && places < 1000, `${span}: ${places}`)
  }
})

test("only what differs from the defaults is asked for", () => {
  const controls = controlsOf({
    properties: {
      strength: { type: "number", minimum: 0, maximum: 1, default: 1 },
      prompt: { type: "string", default: "a" },
    },
  })
  const values = { ...initialOf(controls), prompt: [["a", 1]] }
  assert.deepEqual(changedFrom(controls, values), { prompt: [["a", 1]] })
})

test("a schema without properties has no controls", () => {
  assert.deepEqual(controlsOf({}), [])
})
