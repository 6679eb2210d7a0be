// What the runner says of itself, over the result: that it loads, and that something failed.

import { TriangleAlert, X } from "lucide"
import { loadingWords, troubleOf } from "../pure/condition.ts"
import type { Studio } from "../studio.ts"
import { Icon } from "./icon.tsx"

export function Runner({ studio }: { studio: Studio }) {
  if (studio.runner.loading.value === null && studio.runner.trouble.value === null) return null
  return (
    <div class="runner">
      <TroubleStrip studio={studio} />
      <LoadingBar studio={studio} />
    </div>
  )
}

function LoadingBar({ studio }: { studio: Studio }) {
  const loading = studio.runner.loading.value
  if (loading === null) return null
  const words = loadingWords(loading)
  return (
    <div class="loading" data-why={loading.why}>
      <span>{words}</span>
      <progress max={100} value={loading.percent} aria-label={words} />
    </div>
  )
}

function TroubleStrip({ studio }: { studio: Studio }) {
  const problem = studio.runner.trouble.value
  if (problem === null) return null
  const { title, text, action } = troubleOf(problem)
  return (
    <div class="trouble">
      <Icon node={TriangleAlert} size={18} />
      <div>
        <strong>{title}</strong>
        {text && <code>{text}</code>}
        {action && <p>{action}</p>}
      </div>
      <button type="button" class="quiet" aria-label="Dismiss" onClick={() => studio.runner.calm()}>
        <Icon node={X} size={16} />
      </button>
    </div>
  )
}
