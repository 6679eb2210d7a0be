// What this page knows of the pipelines that come with the platform: their pictures, and prompts to begin with.

import effects from "./assets/effects.webp"
import neon from "./assets/look-neon.webp"
import sketch from "./assets/look-sketch.webp"
import watercolor from "./assets/look-watercolor.webp"
import passthrough from "./assets/passthrough.webp"

export interface Look {
  readonly prompt: string
  readonly picture: string
}

const PICTURES: Readonly<Record<string, string>> = { effects, passthrough }
const LOOKS: Readonly<Record<string, readonly Look[]>> = {
  effects: [
    { prompt: "watercolor", picture: watercolor },
    { prompt: "sketch", picture: sketch },
    { prompt: "neon", picture: neon },
  ],
}

export function pictureOf(pipeline: string): string | null {
  return PICTURES[pipeline] ?? null
}

export function looksOf(pipeline: string): readonly Look[] {
  return LOOKS[pipeline] ?? []
}
