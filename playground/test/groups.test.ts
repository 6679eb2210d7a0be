import assert from "node:assert/strict"
import { test } from "node:test"
import { changedIn, groupsOf, matching } from "../src/pure/groups.ts"
import { controlsOf } from "../src/pure/schema.ts"

const live = { type: "number", minimum: 0, maximum: 1, default: 0.5 }
const prompt = { anyOf: [{ type: "string" }, { type: "array" }], default: "neon" }
const named = (names: readonly string[], extra: Record<string, unknown> = {}) =>
  controlsOf({ properties: { ...Object.fromEntries(names.map((name) => [name, live])), ...extra } })
const names = (controls: readonly { readonly name: string }[]) => controls.map(({ name }) => name)
const filler = Array.from({ length: 12 }, (_, index) => `knob_${index}`)

test("a handful of parameters is shown as it is declared", () => {
  const controls = named(["b", "a", "seed"], { prompt })
  assert.deepEqual(groupsOf(controls), { main: controls, more: [] })
})

test("of many the prompt comes first, then what is steered by hand, in a known order", () => {
  const { main } = groupsOf(named([...filler, "seed", "strength", "negative_prompt"], { prompt }))
  assert.deepEqual(names(main), ["prompt", "strength", "seed", "negative_prompt"])
})

test("no more than six stand in front, and nothing is lost", () => {
  const all = named([
    ...filler,
    "mode",
    "style",
    "look",
    "controlnets",
    "seed",
    "strength",
    "guidance_scale",
    "prompt",
  ])
  const { main, more } = groupsOf(all)
  assert.equal(main.length, 6)
  const shown = [...names(main), ...more.flatMap(({ controls }) => names(controls))]
  assert.deepEqual(shown.toSorted(), names(all).toSorted())
})

test("the others stand under what their names speak of, and what speaks of nothing comes last", () => {
  const { more } = groupsOf(
    named([
      ...filler,
      "model_id",
      "lora_dict",
      "num_inference_steps",
      "controlnets_scale",
      "prompt_interpolation_method",
      "similar_image_filter_threshold",
      "strength",
    ]),
  )
  const found = Object.fromEntries(more.map(({ title, controls }) => [title, names(controls)]))
  assert.deepEqual(found.Model, ["model_id", "lora_dict"])
  assert.deepEqual(found["Noise and steps"], ["num_inference_steps"])
  assert.deepEqual(found.Control, ["controlnets_scale"])
  assert.deepEqual(found["Prompt and guidance"], ["prompt_interpolation_method"])
  assert.deepEqual(found.Picture, ["similar_image_filter_threshold"])
  assert.equal(more.at(-1)?.title, "Other")
})

test("a word is a whole word: a remodelled thing is no model", () => {
  const { more } = groupsOf(named([...filler, "remodelled", "strength"]))
  assert.deepEqual(
    more.map(({ title }) => title),
    ["Other"],
  )
})

test("a pipeline's own headings win", () => {
  const { more } = groupsOf(named([...filler, "strength"], { model_id: { ...live, "x-group": "Weights" } }))
  assert.deepEqual(names(more.find(({ title }) => title === "Weights")?.controls ?? []), ["model_id"])
})

test("a pipeline without any known name shows what can be dragged while it runs", () => {
  const { main } = groupsOf(named(filler, { quiet: { ...live, "x-apply": "reload" } }))
  assert.deepEqual(names(main), filler.slice(0, 6))
})

test("a parameter is found by any of its words", () => {
  const controls = named(["similar_image_filter_threshold", "seed"])
  assert.deepEqual(names(matching(controls, "filter IMAGE")), ["similar_image_filter_threshold"])
  assert.deepEqual(names(matching(controls, "  ")), names(controls))
  assert.deepEqual(matching(controls, "lora"), [])
})

test("what was changed is counted by its value", () => {
  const controls = named(["a"], { list: { type: "array", default: [1, 2] } })
  assert.equal(changedIn(controls, { a: 0.5, list: [1, 2] }), 0)
  assert.equal(changedIn(controls, { a: 0.6, list: [2, 1] }), 2)
})
