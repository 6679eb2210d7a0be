// What is sent: its picture, and the choice of where it comes from.

import { Camera, FileVideo, MonitorUp, RadioTower, Shapes } from "lucide"
import { useRef } from "preact/hooks"
import type { SourceKind } from "../media/source.ts"
import type { Studio } from "../studio.ts"
import { Icon } from "./icon.tsx"
import { Notice, Screen } from "./screen.tsx"

const KINDS = [
  { kind: "pattern", label: "Pattern", icon: Shapes },
  { kind: "camera", label: "Camera", icon: Camera },
  { kind: "screen", label: "Screen", icon: MonitorUp },
  { kind: "file", label: "File", icon: FileVideo },
  { kind: "elsewhere", label: "Elsewhere", icon: RadioTower },
] as const satisfies readonly { kind: SourceKind; label: string; icon: unknown }[]

const NO_SOURCE = { title: "No source", text: "" }
const EMPTY: Readonly<Partial<Record<SourceKind, typeof NO_SOURCE>>> = {
  file: { title: "Choose a video file", text: "It stays on this machine and is sent as live video." },
  elsewhere: {
    title: "OBS, ffmpeg, or any other program",
    text: "It sends to one of the addresses below; this page shows and steers the result.",
  },
}

const HEIGHTS = [360, 540, 720]

export function SourceScreen({ studio }: { studio: Studio }) {
  const source = studio.source.value
  const failure = studio.sourceFailure.value
  return (
    <Screen name="Source" media={source?.media ?? null}>
      {failure && (
        <Notice title={failure.title} text={failure.text} bad>
          {source ? (
            <button type="button" onClick={() => studio.keepSource()}>
              Stay with the source before
            </button>
          ) : (
            <button type="button" onClick={() => void studio.choose(studio.kind.value)}>
              Try again
            </button>
          )}
        </Notice>
      )}
      {!source && !failure && <Notice {...(EMPTY[studio.kind.value] ?? NO_SOURCE)} />}
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
      {/* Buttons and not radios: arrow keys would ask for the camera on their way past it. */}
      {/* biome-ignore lint/a11y/useSemanticElements: a fieldset is for fields, and these are buttons */}
      <div class="segments" role="group" aria-label="Where the video comes from">
        {KINDS.map(({ kind, label, icon }) => (
          <button
            key={kind}
            type="button"
            aria-pressed={studio.kind.value === kind}
            onClick={() => choose(kind)}
          >
            <Icon node={icon} />
            {label}
          </button>
        ))}
      </div>
      <input
        ref={picker}
        type="file"
        accept="video/*"
        hidden
        onChange={(event) => {
          const file = event.currentTarget.files?.[0]
          if (file) void studio.choose("file", file)
          event.currentTarget.value = ""
        }}
        onCancel={() => studio.keepSource()}
      />
      {studio.kind.value !== "elsewhere" && <Options studio={studio} />}
    </div>
  )
}

function Options({ studio }: { studio: Studio }) {
  return (
    <>
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
    </>
  )
}
