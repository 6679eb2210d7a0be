// What is sent: its picture, and the choice of where it comes from.

import { Camera, FileVideo, MonitorUp, Shapes } from "lucide"
import { useRef } from "preact/hooks"
import type { SourceKind } from "../media/source.ts"
import type { Studio } from "../studio.ts"
import { Icon } from "./icon.tsx"
import { Notice, Screen } from "./screen.tsx"

const KINDS = [
  { kind: "pattern", label: "Test pattern", icon: Shapes },
  { kind: "camera", label: "Camera", icon: Camera },
  { kind: "screen", label: "Screen", icon: MonitorUp },
  { kind: "file", label: "File", icon: FileVideo },
] as const satisfies readonly { kind: SourceKind; label: string; icon: unknown }[]

const HEIGHTS = [360, 540, 720]

export function SourceScreen({ studio }: { studio: Studio }) {
  const source = studio.source.value
  const failure = studio.sourceFailure.value
  return (
    <Screen name="Source" media={source?.media ?? null}>
      {failure && (
        <Notice title={failure.title} text={failure.text} bad>
          <button type="button" onClick={() => void studio.choose(studio.kind.value)}>
            Try again
          </button>
        </Notice>
      )}
      {!source && !failure && (
        <Notice
          title={studio.kind.value === "file" ? "Choose a video file" : "No source"}
          text={studio.kind.value === "file" ? "It stays on this machine and is sent as live video." : ""}
        />
      )}
    </Screen>
  )
}

export function SourceChoice({ studio }: { studio: Studio }) {
  const picker = useRef<HTMLInputElement>(null)
  const choose = (kind: SourceKind) => {
    if (kind === "file") picker.current?.click()
    void studio.choose(kind)
  }
  return (
    <div class="source-choice">
      <fieldset class="segments">
        <legend class="unseen">Source</legend>
        {KINDS.map(({ kind, label, icon }) => (
          <label key={kind}>
            <input
              type="radio"
              name="source"
              value={kind}
              checked={studio.kind.value === kind}
              onChange={() => choose(kind)}
              onClick={() => {
                if (kind === "file" && studio.kind.value === "file") picker.current?.click()
              }}
            />
            <Icon node={icon} />
            <span>{label}</span>
          </label>
        ))}
      </fieldset>
      <input
        ref={picker}
        type="file"
        accept="video/*"
        class="unseen"
        tabIndex={-1}
        aria-label="Video file"
        onChange={(event) => {
          const file = event.currentTarget.files?.[0]
          if (file) void studio.choose("file", file)
          event.currentTarget.value = ""
        }}
      />
      <label class="small-select">
        <span class="unseen">Size of the picture</span>
        <select
          value={String(studio.height.value)}
          disabled={studio.running.value}
          onChange={(event) => {
            studio.height.value = Number(event.currentTarget.value)
            void studio.choose(studio.kind.value)
          }}
        >
          {HEIGHTS.map((height) => (
            <option key={height} value={String(height)}>
              {height}p
            </option>
          ))}
        </select>
      </label>
      {studio.kind.value !== "pattern" && (
        <label class="check">
          <input
            type="checkbox"
            role="switch"
            checked={studio.sound.value}
            aria-checked={studio.sound.value}
            disabled={studio.running.value}
            onChange={(event) => {
              studio.sound.value = event.currentTarget.checked
              void studio.choose(studio.kind.value)
            }}
          />
          Sound
        </label>
      )}
    </div>
  )
}
