// What the pipeline says beside its pictures, newest last, as it comes.

import { useEffect, useRef } from "preact/hooks"
import type { Studio } from "../studio.ts"

export function Messages({ studio }: { studio: Studio }) {
  const list = useRef<HTMLOListElement>(null)
  const messages = studio.messages.value
  useEffect(() => {
    if (messages.length > 0) list.current?.scrollTo({ top: list.current.scrollHeight })
  }, [messages])
  if (messages.length === 0) return null
  return (
    <section class="block" aria-labelledby="messages">
      <h2 id="messages">What the pipeline says</h2>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard */}
      <ol class="messages" ref={list} tabIndex={0}>
        {messages.map(({ number, at, data }) => (
          <li key={number}>
            <time>{at.toLocaleTimeString("en", { hour12: false })}</time>
            <code>{wordsOf(data)}</code>
          </li>
        ))}
      </ol>
    </section>
  )
}

// A message is `{"pts": ..., "data": ...}`, of which the data is what the pipeline's author wrote.
function wordsOf(message: unknown): string {
  const said = typeof message === "object" && message !== null && "data" in message ? message.data : message
  if (typeof said === "string") return said
  if (typeof said === "object" && said !== null && "text" in said && typeof said.text === "string")
    return said.text
  return JSON.stringify(said)
}
