// A pipeline's parameters: those that are steered by hand, and of many the others under their headings.

import { useSignal } from "@preact/signals"
import { ChevronRight, Search } from "lucide"
import { useId } from "preact/hooks"
import { changedIn, type Group, matching } from "../pure/groups.ts"
import type { Studio } from "../studio.ts"
import { Fields } from "./controls.tsx"
import { Icon } from "./icon.tsx"

export function Parameters({ studio }: { studio: Studio }) {
  const { main, more } = studio.groups.value
  if (main.length === 0) return <p class="muted">This pipeline has nothing to set.</p>
  return (
    <>
      <Fields controls={main} studio={studio} />
      {more.length > 0 && <More key={studio.chosen.value} groups={more} studio={studio} />}
    </>
  )
}

function More({ groups, studio }: { groups: readonly Group[]; studio: Studio }) {
  const typed = useSignal("")
  const id = useId()
  const all = groups.flatMap(({ controls }) => controls)
  const found = matching(all, typed.value)
  return (
    <section class="more-parameters" aria-labelledby={id}>
      <div class="more-head">
        <h3 id={id}>More</h3>
        <label class="find">
          <Icon node={Search} size={15} />
          <input
            type="text"
            inputMode="search"
            placeholder={`Find among ${all.length}`}
            aria-label="Find a parameter"
            value={typed.value}
            onInput={(event) => {
              typed.value = event.currentTarget.value
            }}
          />
        </label>
      </div>
      {typed.value.trim() !== "" ? (
        <Found found={found} studio={studio} />
      ) : (
        groups.map((group) => <Heading key={group.title} group={group} studio={studio} />)
      )}
    </section>
  )
}

function Found({ found, studio }: { found: Group["controls"]; studio: Studio }) {
  if (found.length === 0) return <p class="muted">None is called so.</p>
  return <Fields controls={found} studio={studio} />
}

function Heading({ group, studio }: { group: Group; studio: Studio }) {
  const open = useSignal(false)
  const changed = changedIn(group.controls, studio.values.value)
  const wrong = group.controls.some(({ name }) => studio.problems.value[name] !== undefined)
  return (
    <details
      class="group"
      open={open.value || wrong}
      onToggle={(event) => {
        open.value = event.currentTarget.open
      }}
    >
      <summary>
        <Icon node={ChevronRight} size={16} />
        {group.title}
        <span class="group-note" data-changed={changed > 0}>
          {changed > 0 ? `${changed} changed` : group.controls.length}
        </span>
      </summary>
      {/* Only what is open is made: forty controls are many. */}
      {(open.value || wrong) && <Fields controls={group.controls} studio={studio} />}
    </details>
  )
}
