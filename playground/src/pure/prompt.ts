// A prompt as two texts and a slider, and as the JSON that a pipeline reads. Pure.

export interface Blend {
  readonly first: string
  /** Null while there is one text only. */
  readonly second: string | null
  /** The second text's share, 0..1. */
  readonly share: number
}

/** Two texts are `[["a", 0.6], ["b", 0.4]]`; a text that has no share or no words is not sent. */
export function promptOf({ first, second, share }: Blend): unknown {
  if (second === null || second.trim() === "" || share <= 0) return first
  if (first.trim() === "" || share >= 1) return second
  return [
    [first, hundredths(1 - share)],
    [second, hundredths(share)],
  ]
}

/** The two heaviest texts of whatever a stream has as its prompt, in their order. */
export function blendOf(prompt: unknown): Blend {
  if (!Array.isArray(prompt))
    return { first: typeof prompt === "string" ? prompt : "", second: null, share: 0.5 }
  const texts = prompt.map(weighted)
  const heaviest = [...texts].sort((one, other) => other[1] - one[1]).slice(0, 2)
  const [first, second] = texts.filter((item) => heaviest.includes(item))
  if (!first || !second) return { first: first?.[0] ?? "", second: null, share: 0.5 }
  const total = first[1] + second[1]
  return { first: first[0], second: second[0], share: total > 0 ? hundredths(second[1] / total) : 0.5 }
}

function weighted(item: unknown): [string, number] {
  if (Array.isArray(item)) return [String(item[0]), Number(item[1])]
  const { text, weight } = item as { text: string; weight?: number }
  return [text, weight ?? 1]
}

const hundredths = (value: number): number => Math.round(value * 100) / 100
