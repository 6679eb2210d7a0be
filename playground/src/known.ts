// What this page knows of the pipelines that come with the platform: their pictures, and prompts to begin with.

import effects from "./assets/effects.webp"
import passthrough from "./assets/passthrough.webp"

export interface Look {
  readonly prompt: string
  readonly picture: string
}

const PICTURES: Readonly<Record<string, string>> = { effects, passthrough }
const PAINTED = import.meta.glob<string>("./assets/look-*.webp", { eager: true, import: "default" })
// Those first that differ most; what is not painted is not shown.
const PROMPTS: Readonly<Record<string, string>> = {
  effects:
    "watercolor comic neon sketch oil pixel stainedglass dream matrix thermal " +
    "popart engraving mosaic poster kaleidoscope ascii noir vhs glitch",
}

export function pictureOf(pipeline: string): string | null {
  return PICTURES[pipeline] ?? null
}

export function looksOf(pipeline: string): readonly Look[] {
  return (PROMPTS[pipeline]?.split(" ") ?? []).flatMap((prompt) => {
    const picture = PAINTED[`./assets/look-${prompt}.webp`]
    return picture ? [{ prompt, picture }] : []
  })
}
