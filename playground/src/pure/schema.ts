// Which control a parameter gets, from the JSON Schema that its pipeline declares. Pure: a schema in, values out.

export type Apply = "live" | "warm" | "reload"
export type Schema = Record<string, unknown>
export type Params = Record<string, unknown>

interface Common {
  readonly name: string
  readonly label: string
  readonly help: string
  readonly apply: Apply
  /** The heading under which its pipeline puts it; empty: it does not say. */
  readonly group: string
}
export interface RangeControl extends Common {
  readonly kind: "range"
  readonly minimum: number
  readonly maximum: number
  readonly step: number
  readonly initial: number
}
export interface NumberControl extends Common {
  readonly kind: "number"
  readonly minimum: number | undefined
  readonly maximum: number | undefined
  readonly step: number | "any"
  readonly initial: number
}
export interface ChoiceControl extends Common {
  readonly kind: "choice"
  readonly options: readonly unknown[]
  readonly initial: unknown
}
export interface SwitchControl extends Common {
  readonly kind: "switch"
  readonly initial: boolean
}
export interface TextControl extends Common {
  readonly kind: "text" | "prompt"
  readonly maxLength: number | undefined
  readonly initial: unknown
}
export interface JsonControl extends Common {
  readonly kind: "json"
  readonly initial: unknown
  /** What JSON Schema calls the types that it may have; empty: any. */
  readonly types: readonly string[]
  /** The whole numbers that it may be as well, such as of a seed that can also be a list. */
  readonly dice: { readonly minimum: number; readonly maximum: number } | null
}
export type Control = RangeControl | NumberControl | ChoiceControl | SwitchControl | TextControl | JsonControl

// A slider with more whole places than a hand can hit is a field with a dice instead.
const MOST_PLACES = 10_000

export function controlsOf(schema: Schema): Control[] {
  const properties = record(schema.properties)
  // What can have one value only is nothing to set.
  return Object.entries(properties)
    .filter(([, property]) => !("const" in record(property)))
    .map(([name, property]) => controlOf(name, record(property)))
}

export function initialOf(controls: readonly Control[]): Params {
  return Object.fromEntries(controls.map((control) => [control.name, control.initial]))
}

/** What differs from the defaults: a stream is asked for that, and its pipeline fills in the rest. */
export function changedFrom(controls: readonly Control[], values: Params): Params {
  const changed = controls.filter(
    ({ name, initial }) => name in values && JSON.stringify(values[name]) !== JSON.stringify(initial),
  )
  return Object.fromEntries(changed.map(({ name }) => [name, values[name]]))
}

function controlOf(name: string, declared: Schema): Control {
  const common = {
    name,
    label: labelOf(name, declared),
    help: text(declared.description),
    apply: applyOf(declared["x-apply"]),
    group: text(declared["x-group"]),
  }
  const property = withoutNull(declared)
  const initial = declared.default
  if (isPrompt(property)) {
    return { ...common, kind: "prompt", maxLength: maxLengthOf(property), initial: initial ?? "" }
  }
  if (Array.isArray(property.enum) && property.enum.length > 0) {
    return { ...common, kind: "choice", options: property.enum, initial: initial ?? property.enum[0] }
  }
  const types = typesOf(property)
  switch (types.length === 1 ? types[0] : "several") {
    case "boolean":
      return { ...common, kind: "switch", initial: initial === true }
    case "string":
      return { ...common, kind: "text", maxLength: number(property.maxLength), initial: text(initial) }
    case "integer":
    case "number":
      return numeric(common, { ...property, type: types[0] }, number(initial))
    default:
      return {
        ...common,
        kind: "json",
        initial: initial ?? null,
        types: allTypesOf(declared),
        dice: diceOf(declared),
      }
  }
}

function numeric(common: Common, property: Schema, initial: number | undefined): Control {
  const whole = property.type === "integer"
  const minimum = number(property.minimum) ?? above(number(property.exclusiveMinimum), whole)
  const maximum = number(property.maximum) ?? below(number(property.exclusiveMaximum), whole)
  const declared = number(property.multipleOf)
  if (minimum !== undefined && maximum !== undefined && maximum > minimum) {
    const step = declared ?? (whole ? 1 : niceStep(maximum - minimum))
    if ((maximum - minimum) / step <= MOST_PLACES) {
      return { ...common, kind: "range", minimum, maximum, step, initial: initial ?? minimum }
    }
  }
  const step = declared ?? (whole ? 1 : "any")
  return { ...common, kind: "number", minimum, maximum, step, initial: initial ?? minimum ?? 0 }
}

/** The power of ten that gives a slider between 100 and 999 places: 0.01 for 0..1, 1 for 0..500. */
export function niceStep(span: number): number {
  return Number((10 ** Math.floor(Math.log10(span / 100))).toPrecision(1))
}

const above = (bound: number | undefined, whole: boolean) =>
  bound !== undefined && whole ? bound + 1 : bound
const below = (bound: number | undefined, whole: boolean) =>
  bound !== undefined && whole ? bound - 1 : bound

// A prompt is a text, or a list of weighted texts.
function isPrompt(property: Schema): boolean {
  const kinds = alternatives(property).map((one) => one.type)
  return kinds.includes("string") && kinds.includes("array")
}

function maxLengthOf(property: Schema): number | undefined {
  return number(alternatives(property).find((one) => one.type === "string")?.maxLength)
}

/** Its types but for null; of alternatives only where all are one. */
function typesOf(property: Schema): readonly string[] {
  const listed = Array.isArray(property.type) ? property.type : [property.type]
  return listed.filter((type): type is string => typeof type === "string" && type !== "null")
}

function allTypesOf(property: Schema): readonly string[] {
  const of = alternatives(property).length > 0 ? alternatives(property) : [property]
  const types = of.flatMap((one) => (Array.isArray(one.type) ? one.type : [one.type]))
  // One alternative that does not say allows any.
  return types.every((type) => typeof type === "string") ? [...new Set(types)] : []
}

function diceOf(property: Schema): JsonControl["dice"] {
  const whole = alternatives(property).find((one) => one.type === "integer")
  const [minimum, maximum] = [number(whole?.minimum), number(whole?.maximum)]
  return minimum !== undefined && maximum !== undefined ? { minimum, maximum } : null
}

function withoutNull(property: Schema): Schema {
  const real = alternatives(property).filter((one) => one.type !== "null")
  const only = real[0]
  return real.length === 1 && only ? { ...property, ...only } : property
}

function alternatives(property: Schema): Schema[] {
  const listed = property.anyOf ?? property.oneOf
  return Array.isArray(listed) ? listed.map(record) : []
}

/** "transition_s" is "Transition (s)": names end in their unit. */
export function labelOf(name: string, property: Schema): string {
  if (typeof property.title === "string") return property.title
  const words = name.split("_")
  const last = words.at(-1) ?? ""
  const unit = words.length > 1 ? UNITS[last] : undefined
  const said = (unit ? words.slice(0, -1) : words).map((word) => SHORT[word] ?? word).join(" ")
  return said.charAt(0).toUpperCase() + said.slice(1) + (unit ? ` (${unit})` : "")
}
// Words that nobody writes as their names are.
const SHORT: Readonly<Record<string, string>> = {
  cfg: "CFG",
  id: "ID",
  ids: "IDs",
  ip: "IP",
  lcm: "LCM",
  lora: "LoRA",
  loras: "LoRAs",
  rgb: "RGB",
  url: "URL",
  vae: "VAE",
}
const UNITS: Readonly<Record<string, string>> = {
  s: "s",
  ms: "ms",
  px: "px",
  hz: "Hz",
  fps: "fps",
  percent: "%",
}

const applyOf = (value: unknown): Apply => (value === "warm" || value === "reload" ? value : "live")
const text = (value: unknown): string => (typeof value === "string" ? value : "")
const number = (value: unknown): number | undefined => (typeof value === "number" ? value : undefined)
const record = (value: unknown): Schema =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Schema) : {}
