// A button that copies a text, and says for a moment that it did.

import { useSignal } from "@preact/signals"
import { Check, Copy } from "lucide"
import { Icon, type IconNode } from "./icon.tsx"

const SAID_MS = 1600

interface CopyProps {
  readonly text: string
  readonly label: string
  readonly icon?: IconNode
}

export function CopyButton({ text, label, icon = Copy }: CopyProps) {
  const copied = useSignal(false)
  const copy = async () => {
    await navigator.clipboard.writeText(text)
    copied.value = true
    setTimeout(() => {
      copied.value = false
    }, SAID_MS)
  }
  return (
    <button
      type="button"
      class="quiet copy"
      aria-label={copied.value ? "Copied" : label}
      title={label}
      onClick={copy}
    >
      <Icon node={copied.value ? Check : icon} size={16} />
    </button>
  )
}
