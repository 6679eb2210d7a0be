// One control for each kind of parameter that a pipeline's schema can declare.

import { Dices, Info } from "lucide"
import type { ComponentChildren } from "preact"
import { useId, useState } from "preact/hooks"
import { looksOf } from "../known.ts"
import { blendOf, promptOf } from "../pure/prompt.ts"
import type { Control, NumberControl, RangeControl, TextControl } from "../pure/schema.ts"
import type { Studio } from "../studio.ts"
import { Icon } from "./icon.tsx"
import { JsonInput } from "./json_input.tsx"

const APPLIES = {
  live: "Takes effect with the next picture.",
  warm: "Takes effect once the pipeline has prepared for it; the video goes on meanwhile.",
  reload: "The pipeline loads anew for it; the video stands still meanwhile.",
} as const

export function Fields({ controls, studio }: { controls: readonly Control[]; studio: Studio }) {
  return (
    <div class="controls">
      {controls.map((control) => (
        <Field key={`${studio.chosen.value}.${control.name}`} control={control} studio={studio} />
      ))}
    </div>
  )
}

function Field({ control, studio }: { control: Control; studio: Studio }) {
  const id = useId()
  const [open, setOpen] = useState(false)
  const problem = studio.problems.value[control.name]
  const described = [open ? `${id}-help` : "", problem ? `${id}-problem` : ""].filter(Boolean).join(" ")
  return (
    <div class="field" data-kind={control.kind}>
      <div class="field-head">
        <label for={id}>{control.label}</label>
        {control.apply !== "live" && (
          <span class="tag" title={APPLIES[control.apply]}>
            {control.apply}
          </span>
        )}
        <button
          type="button"
          class="quiet info"
          aria-expanded={open}
          aria-label={`About ${control.label}`}
          onClick={() => setOpen(!open)}
        >
          <Icon node={Info} size={15} />
        </button>
        <span class="field-value">
          {control.kind === "range" && (
            <NumberBox control={control} studio={studio} label={`${control.label}, as a number`} />
          )}
        </span>
      </div>
      {open && (
        <p class="help" id={`${id}-help`}>
          {control.help} <em>{APPLIES[control.apply]}</em>
        </p>
      )}
      <Input id={id} described={described} control={control} studio={studio} />
      {problem && (
        <p class="problem" id={`${id}-problem`}>
          {problem}
        </p>
      )}
    </div>
  )
}

export interface InputProps<Kind extends Control = Control> {
  readonly id: string
  readonly described: string
  readonly control: Kind
  readonly studio: Studio
}

function Input({ id, described, control, studio }: InputProps) {
  const value = studio.values.value[control.name]
  const set = (next: unknown) => studio.set(control.name, next)
  switch (control.kind) {
    case "range":
      return <Range id={id} described={described} control={control} studio={studio} />
    case "number":
      return (
        <span class="row">
          <NumberBox id={id} control={control} studio={studio} />
          {control.minimum !== undefined && control.maximum !== undefined && (
            <button
              type="button"
              class="quiet"
              aria-label={`Any ${control.label}`}
              title="Any"
              onClick={() => set(anyOf(control))}
            >
              <Icon node={Dices} />
            </button>
          )}
        </span>
      )
    case "choice":
      return (
        <select
          id={id}
          aria-describedby={described}
          value={String(control.options.indexOf(value))}
          onChange={(event) => set(control.options[Number(event.currentTarget.value)])}
        >
          {control.options.map((option, index) => (
            <option key={String(option)} value={String(index)}>
              {String(option)}
            </option>
          ))}
        </select>
      )
    case "switch":
      return (
        <input
          id={id}
          type="checkbox"
          role="switch"
          aria-describedby={described}
          checked={value === true}
          aria-checked={value === true}
          onChange={(event) => set(event.currentTarget.checked)}
        />
      )
    case "text":
      return (
        <input
          id={id}
          type="text"
          aria-describedby={described}
          maxLength={control.maxLength ?? -1}
          value={String(value ?? "")}
          onInput={(event) => set(event.currentTarget.value)}
        />
      )
    case "prompt":
      return <PromptInput id={id} described={described} control={control} studio={studio} />
    case "json":
      return <JsonInput id={id} described={described} control={control} studio={studio} />
  }
}

function Range({ id, described, control, studio }: InputProps<RangeControl>) {
  const { minimum, maximum, step, name } = control
  const value = Number(studio.values.value[name])
  return (
    <Slider
      id={id}
      described={described}
      minimum={minimum}
      maximum={maximum}
      step={step}
      value={value}
      set={(next) => studio.set(name, next)}
    />
  )
}

interface SliderProps {
  readonly id?: string
  readonly label?: string
  readonly described?: string
  readonly minimum: number
  readonly maximum: number
  readonly step: number
  readonly value: number
  readonly set: (value: number) => void
}

function Slider({ id, label, described, minimum, maximum, step, value, set }: SliderProps) {
  const filled = `${(100 * (value - minimum)) / (maximum - minimum)}%`
  return (
    <input
      {...(id ? { id } : {})}
      {...(label ? { "aria-label": label } : {})}
      type="range"
      aria-describedby={described ?? ""}
      min={minimum}
      max={maximum}
      step={step}
      value={value}
      style={{ "--filled": filled }}
      onInput={(event) => set(event.currentTarget.valueAsNumber)}
    />
  )
}

interface NumberBoxProps {
  readonly id?: string
  readonly label?: string
  readonly control: RangeControl | NumberControl
  readonly studio: Studio
}

function NumberBox({ id, label, control, studio }: NumberBoxProps) {
  const { minimum, maximum, step, name } = control
  return (
    <input
      {...(id ? { id } : {})}
      {...(label ? { "aria-label": label } : {})}
      type="number"
      min={minimum ?? ""}
      max={maximum ?? ""}
      step={step}
      value={String(studio.values.value[name])}
      onInput={(event) => {
        // While it is typed a number may be none, or out of its bounds: that is not sent.
        if (event.currentTarget.checkValidity() && event.currentTarget.value !== "") {
          studio.set(name, event.currentTarget.valueAsNumber)
        }
      }}
    />
  )
}

function anyOf({ minimum = 0, maximum = 1, step }: NumberControl): number {
  const value = minimum + Math.random() * (maximum - minimum)
  return step === "any" ? value : Math.round(value)
}

function PromptInput({ id, described, control, studio }: InputProps<TextControl>) {
  const blend = blendOf(studio.values.value[control.name])
  // A half that is empty or weighs nothing is not sent, but it stays on the page.
  const [kept, setKept] = useState(blend)
  const put = (next: typeof blend) => {
    setKept(next)
    studio.set(control.name, promptOf(next))
  }
  const looks = looksOf(studio.chosen.value)
  const max = control.maxLength ?? -1
  const percent = Math.round(kept.share * 100)
  return (
    <div class="prompt">
      <textarea
        id={id}
        rows={2}
        spellcheck={false}
        maxLength={max}
        aria-describedby={described}
        value={kept.first}
        onInput={(event) => put({ ...kept, first: event.currentTarget.value })}
      />
      {looks.length > 0 && (
        <Looks label="Looks" looks={looks} chosen={kept.first} choose={(first) => put({ ...kept, first })} />
      )}
      {kept.second === null ? (
        <button type="button" class="link" onClick={() => put({ ...kept, second: "", share: 0.5 })}>
          Blend with a second prompt
        </button>
      ) : (
        <>
          <div class="mix">
            <output>{100 - percent} %</output>
            <Slider
              label="Share of the second prompt, in percent"
              minimum={0}
              maximum={100}
              step={1}
              value={percent}
              set={(value) => put({ ...kept, share: value / 100 })}
            />
            <output>{percent} %</output>
          </div>
          <textarea
            rows={2}
            spellcheck={false}
            maxLength={max}
            aria-label="Second prompt"
            value={kept.second}
            onInput={(event) => put({ ...kept, second: event.currentTarget.value })}
          />
          {looks.length > 0 && (
            <Looks
              label="Looks of the second prompt"
              looks={looks}
              chosen={kept.second}
              choose={(second) => put({ ...kept, second })}
            />
          )}
          <button type="button" class="link" onClick={() => put({ ...kept, second: null })}>
            One prompt only
          </button>
        </>
      )}
    </div>
  )
}

interface LooksProps {
  readonly label: string
  readonly looks: ReturnType<typeof looksOf>
  readonly chosen: string
  readonly choose: (prompt: string) => void
}

function Looks({ label, looks, chosen, choose }: LooksProps) {
  return (
    <Group label={label}>
      {looks.map(({ prompt, picture }) => (
        <button
          key={prompt}
          type="button"
          class="look"
          aria-pressed={chosen === prompt}
          onClick={() => choose(prompt)}
        >
          <img src={picture} alt="" width={96} height={54} />
          {prompt}
        </button>
      ))}
    </Group>
  )
}

function Group({ label, children }: { label: string; children: ComponentChildren }) {
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset is for fields, and these are buttons
    <div class="looks" role="group" aria-label={label}>
      {children}
    </div>
  )
}
