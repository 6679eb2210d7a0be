import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"

// Which colours stand on which, as the style sheets use them. WCAG 2.2 AA: 4.5 for text, 3 for what is drawn.
const TEXT = [
  ["text", "ground"],
  ["text", "surface"],
  ["text", "sunken"],
  ["text", "accent-soft"],
  ["muted", "ground"],
  ["muted", "surface"],
  ["muted", "sunken"],
  ["accent", "ground"],
  ["accent", "surface"],
  ["on-accent", "accent"],
  ["on-accent", "accent-strong"],
  ["bad", "ground"],
  ["bad", "surface"],
] as const
const DRAWN = [
  ["accent", "line"],
  ["line-strong", "surface"],
  ["accent", "ground"],
] as const

const css = readFileSync(new URL("../src/style/base.css", import.meta.url), "utf8")

function colour(name: string, scheme: 0 | 1): [number, number, number] {
  const pair = new RegExp(`--${name}: light-dark\\((#[0-9a-f]{6}), (#[0-9a-f]{6})\\)`).exec(css)
  const hex = pair?.[scheme + 1]
  assert.ok(hex, `--${name} is no pair of colours`)
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16)) as [number, number, number]
}

function luminance(rgb: readonly number[]): number {
  const [red = 0, green = 0, blue = 0] = rgb.map((part) => {
    const share = part / 255
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}

function contrast(one: string, other: string, scheme: 0 | 1): number {
  const [dark = 0, light = 0] = [one, other]
    .map((name) => luminance(colour(name, scheme)))
    .sort((a, b) => a - b)
  return (light + 0.05) / (dark + 0.05)
}

for (const [scheme, name] of [
  [0, "light"],
  [1, "dark"],
] as const) {
  test(`text can be read in the ${name}`, () => {
    for (const [one, other] of TEXT) {
      assert.ok(
        contrast(one, other, scheme) >= 4.5,
        `${one} on ${other}: ${contrast(one, other, scheme).toFixed(2)}`,
      )
    }
  })

  test(`what is drawn can be seen in the ${name}`, () => {
    for (const [one, other] of DRAWN) {
      assert.ok(
        contrast(one, other, scheme) >= 3,
        `${one} on ${other}: ${contrast(one, other, scheme).toFixed(2)}`,
      )
    }
  })
}
