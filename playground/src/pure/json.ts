// A value as its author types it: JSON, and why it is not yet one that can be sent. Pure.

import type { JsonControl } from "./schema.ts"

const ONE_LINE = 60

/** On one line while that is short, for a list of three numbers is read so; else indented. */
export function textOf(value: unknown): string {
  const lines = JSON.stringify(value ?? null, null, 2)
  // In JSON a line can only break between values, never in a text.
  const line = lines
    .replaceAll(/([[{])\n\s*/g, "$1")
    .replaceAll(/\n\s*([\]}])/g, "$1")
    .replaceAll(/\n\s*/g, " ")
  return line.length <= ONE_LINE ? line : lines
}

export type Typed =
  | { readonly ok: true; readonly value: unknown }
  | { readonly ok: false; readonly problem: string }

export function readJson(typed: string, control: JsonControl): Typed {
  let value: unknown
  try {
    value = JSON.parse(typed)
  } catch (error) {
    return { ok: false, problem: `Not JSON yet: ${error instanceof Error ? error.message : String(error)}` }
  }
  const { types } = control
  if (types.length === 0 || types.some((type) => isA(type, value))) return { ok: true, value }
  return { ok: false, problem: `${upper(named(types))} is expected here.` }
}

function isA(type: string, value: unknown): boolean {
  switch (type) {
    case "array":
      return Array.isArray(value)
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value)
    case "null":
      return value === null
    case "integer":
      return Number.isInteger(value)
    default:
      return typeof value === type
  }
}

const NAMES: Readonly<Record<string, string>> = {
  array: "a list, such as [1, 2]",
  object: 'an object, such as {"a": 1}',
  integer: "a whole number",
  number: "a number",
  string: 'a text in quotes, such as "a"',
  boolean: "true or false",
  null: "null",
}

function named(types: readonly string[]): string {
  const names = types.map((type) => NAMES[type] ?? type)
  const last = names.at(-1) ?? ""
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} or ${last}` : last
}

const upper = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1)
