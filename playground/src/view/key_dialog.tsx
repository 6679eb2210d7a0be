// Asks for an API key, which stays in this browser.

import { useEffect, useRef } from "preact/hooks"
import { key } from "../api.ts"
import type { Studio } from "../studio.ts"

export function KeyDialog({ studio }: { studio: Studio }) {
  const dialog = useRef<HTMLDialogElement>(null)
  const open = studio.asking.value
  useEffect(() => {
    if (open) dialog.current?.showModal()
    else dialog.current?.close()
  }, [open])
  const close = () => {
    studio.asking.value = false
  }
  return (
    <dialog ref={dialog} aria-labelledby="key-title" onClose={close}>
      <form
        method="dialog"
        onSubmit={(event) => {
          const typed = new FormData(event.currentTarget).get("key")
          studio.useKey(typeof typed === "string" ? typed.trim() : "")
        }}
      >
        <h2 id="key-title">API key</h2>
        <p class="muted">
          {studio.keyRefused.value ? "The platform does not know the key that was entered. " : ""}
          It is kept in this browser only, and sent to this server only.
        </p>
        <label>
          <span>Key</span>
          <input
            name="key"
            type="password"
            autocomplete="off"
            spellcheck={false}
            required={!key()}
            maxLength={200}
          />
        </label>
        <div class="row end">
          {key() && (
            <button type="button" class="quiet" onClick={() => studio.useKey("")}>
              Forget the key
            </button>
          )}
          <button type="button" onClick={close}>
            Cancel
          </button>
          <button type="submit" class="primary">
            Use it
          </button>
        </div>
      </form>
    </dialog>
  )
}
