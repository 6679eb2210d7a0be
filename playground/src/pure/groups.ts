// Which parameters are shown at once, and under which headings the others stand. Pure.
//
// A pipeline with a handful shows all of them. One with many shows what is steered by hand while it runs, and the
// rest under what its names speak of, unless it gives headings of its own (`x-group`).

import type { Control, Params } from "./schema.ts"

export interface Group {
  readonly title: string
  readonly controls: readonly Control[]
}
export interface Grouped {
  readonly main: readonly Control[]
  readonly more: readonly Group[]
}

const FEW = 10
const MAIN = 6
// Whole words of a name: what is reached for first, in this order.
const FIRST = [
  /^prompt$/,
  /^(strength|intensity|amount|denoise|denoising|denoising_strength|noise_scale)$/,
  /^(t_index_list|denoising_step_list)$/,
  /^(guidance_scale|cfg_scale)$/,
  /^(seed|base_seed)$/,
  /^negative_prompt$/,
  /^(style|look|mode|controlnets|workflow)$/,
]
// The first that speaks of a name has it.
const HEADINGS: readonly (readonly [string, RegExp])[] = [
  [
    "Model",
    /(^|_)(model|lora|loras|lcm|vae|acceleration|precision|quantization|width|height|compile|device)(_|$)/,
  ],
  ["Control", /(^|_)(controlnets?|control|adapter|attention|reference|mask|depth|pose)(_|$)/],
  ["Prompt and guidance", /(^|_)(prompts?|guidance|cfg|delta|transition|text|temporal)(_|$)/],
  ["Noise and steps", /(^|_)(seeds?|noise|steps?|index|denoising|diffusion|scheduler|sampler)(_|$)/],
  [
    "Picture",
    /(^|_)(images?|pictures?|latent|filter|blur|colou?rs?|frame|processing|upscale|sharpness)(_|$)/,
  ],
]
const OTHER = "Other"

export function groupsOf(controls: readonly Control[]): Grouped {
  if (controls.length <= FEW) return { main: controls, more: [] }
  const main = mainOf(controls)
  const titled = new Map<string, Control[]>()
  for (const control of controls) {
    if (main.includes(control)) continue
    const title = control.group || headingOf(control.name)
    titled.set(title, [...(titled.get(title) ?? []), control])
  }
  const more = [...titled].map(([title, found]) => ({ title, controls: found }))
  // What no heading fits comes last, the others in the order in which the pipeline declares them.
  more.sort((one, other) => Number(one.title === OTHER) - Number(other.title === OTHER))
  return { main, more }
}

function mainOf(controls: readonly Control[]): readonly Control[] {
  const place = ({ name, kind }: Control) =>
    kind === "prompt" && name !== "negative_prompt" ? 0 : FIRST.findIndex((first) => first.test(name))
  const known = controls.filter((control) => place(control) >= 0)
  known.sort((one, other) => place(one) - place(other))
  const found = known.slice(0, MAIN)
  // A pipeline that knows none of these names shows what can be dragged while it runs.
  for (const control of controls) {
    if (found.length >= MAIN) break
    if (control.kind === "range" && control.apply === "live" && known.length === 0) found.push(control)
  }
  return found.length > 0 ? found : controls.slice(0, MAIN)
}

function headingOf(name: string): string {
  return HEADINGS.find(([, words]) => words.test(name))?.[0] ?? OTHER
}

/** The controls of which a word is in the name, the label or the help. */
export function matching(controls: readonly Control[], typed: string): readonly Control[] {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean)
  return controls.filter(({ name, label, help }) => {
    const said = `${name} ${label} ${help}`.toLowerCase()
    return words.every((word) => said.includes(word))
  })
}

export function changedIn(controls: readonly Control[], values: Params): number {
  return controls.filter(({ name, initial }) => JSON.stringify(values[name]) !== JSON.stringify(initial))
    .length
}
