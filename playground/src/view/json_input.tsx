// A list, an object, or anything else that no other control fits: typed as JSON, or dropped in as a file.

import { Dices, FileUp } from "lucide"
import { useEffect, useRef, useState } from "preact/hooks"
import { readJson, textOf } from "../pure/json.ts"
import type { JsonControl } from "../pure/schema.ts"
import type { InputProps } from "./controls.tsx"
import { Icon } from "./icon.tsx"

const MOST_ROWS = 14
const FILE_BYTES = 1024 * 1024

export function JsonInput({ id, described, control, studio }: InputProps<JsonControl>) {
  const value = studio.values.value[control.name]
  const refused = studio.problems.value[control.name] !== undefined
  const [text, setText] = useState(() => textOf(value))
  const [wrong, setWrong] = useState("")
  const [over, setOver] = useState(false)
  const own = useRef(value)
  const chooser = useRef<HTMLInputElement>(null)
  // Set from elsewhere, such as by another choice of pipeline; what was typed and refused stays to be mended.
  useEffect(() => {
    if (value === own.current || refused) return
    own.current = value
    setText(textOf(value))
    setWrong("")
  }, [value, refused])
  const take = (typed: string) => {
    setText(typed)
    const read = readJson(typed, control)
    setWrong(read.ok ? "" : read.problem)
    if (!read.ok) return
    own.current = read.value
    studio.set(control.name, read.value)
  }
  const open = async (file: File | undefined) => {
    if (file === undefined) return
    if (file.size > FILE_BYTES) setWrong(`${file.name} is larger than 1 MB.`)
    else take(await file.text())
  }
  const { dice } = control
  const lines = text.split("\n").length
  return (
    <div class="json" data-over={over} data-large={lines > MOST_ROWS}>
      <textarea
        id={id}
        class="code"
        rows={Math.min(MOST_ROWS, lines)}
        spellcheck={false}
        autocomplete="off"
        aria-describedby={`${described} ${id}-json`.trim()}
        aria-invalid={wrong !== ""}
        value={text}
        onInput={(event) => take(event.currentTarget.value)}
        onDragOver={(event) => {
          event.preventDefault()
          setOver(true)
        }}
        onDragLeave={() => setOver(false)}
        onDrop={(event) => {
          setOver(false)
          const file = event.dataTransfer?.files[0]
          if (file === undefined) return
          event.preventDefault()
          void open(file)
        }}
      />
      <span class="json-tools">
        {dice && (
          <button
            type="button"
            class="quiet"
            aria-label={`Any ${control.label}`}
            title="Any"
            onClick={() => take(String(between(dice.minimum, dice.maximum)))}
          >
            <Icon node={Dices} size={16} />
          </button>
        )}
        {!dice && (
          <button
            type="button"
            class="quiet"
            aria-label={`${control.label} from a file`}
            title="From a file, which can be dropped here too"
            onClick={() => chooser.current?.click()}
          >
            <Icon node={FileUp} size={16} />
          </button>
        )}
        <input
          ref={chooser}
          type="file"
          accept=".json,application/json"
          hidden
          onChange={(event) => {
            const { files } = event.currentTarget
            void open(files?.[0])
            event.currentTarget.value = ""
          }}
        />
      </span>
      <p class="problem" id={`${id}-json`} hidden={wrong === ""}>
        {wrong}
      </p>
    </div>
  )
}

function between(minimum: number, maximum: number): number {
  return minimum + Math.floor(Math.random() * (maximum - minimum + 1))
}
