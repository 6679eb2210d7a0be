// Lucide's icons as Preact elements; they are drawn in the colour of the text and hidden from screen readers.

import { h } from "preact"

export type IconNode = readonly (readonly [tag: string, attributes: Record<string, unknown>])[]

export function Icon({ node, size = 18 }: { node: IconNode; size?: number }) {
  return (
    <svg
      class="icon"
      width={size}
      height={size}
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      stroke-width="1.75"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      {node.map(([tag, attributes], index) => h(tag, { ...attributes, key: index }))}
    </svg>
  )
}
