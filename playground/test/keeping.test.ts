import assert from "node:assert/strict"
import { afterEach, beforeEach, mock, test } from "node:test"
import { keep } from "../src/media/keeping.ts"
import type { Peering } from "../src/media/peering.ts"
import { ApiError, NoConnectionError } from "../src/pure/failures.ts"

// What `keep` sees of a connection: its state, and that it was closed.
class Connection extends EventTarget {
  connectionState: RTCPeerConnectionState = "connected"
  closed = false
  readonly pc = this

  becomes(state: RTCPeerConnectionState): void {
    this.connectionState = state
    this.dispatchEvent(new Event("connectionstatechange"))
  }

  async close(): Promise<void> {
    this.closed = true
  }
}

class Trial {
  readonly made: Connection[] = []
  readonly states: boolean[] = []
  readonly stop = new AbortController()
  readonly refusals: Error[]
  readonly ended: Promise<string>

  constructor(...refusals: Error[]) {
    this.refusals = refusals
    const open = async () => {
      const refusal = this.refusals.shift()
      if (refusal) throw refusal
      const connection = new Connection()
      this.made.push(connection)
      return connection as unknown as Peering
    }
    this.ended = keep(open, (peering) => this.states.push(peering !== null), this.stop.signal).then(
      () => "returned",
      (error: Error) => error.name,
    )
  }

  get newest(): Connection {
    const found = this.made.at(-1)
    assert.ok(found)
    return found
  }
}

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }))
afterEach(() => mock.timers.reset())

const settle = () => new Promise<void>((resolve) => setImmediate(resolve))
const pass = async (ms: number) => {
  mock.timers.tick(ms)
  await settle()
}

test("a connection that failed is made anew, and its rest is closed", async () => {
  const trial = new Trial()
  await settle()
  const first = trial.newest
  first.becomes("failed")
  await settle()
  assert.deepEqual([trial.made.length, first.closed, trial.states], [2, true, [true, false, true]])
  trial.stop.abort()
  assert.equal(await trial.ended, "AbortError")
})

test("a drop that recovers is only told", async () => {
  const trial = new Trial()
  await settle()
  trial.newest.becomes("disconnected")
  await pass(2000)
  trial.newest.becomes("connected")
  await pass(10_000)
  assert.deepEqual([trial.made.length, trial.states], [1, [true, false, true]])
  trial.stop.abort()
  await trial.ended
})

test("a drop that does not recover in three seconds is a failure", async () => {
  const trial = new Trial()
  await settle()
  trial.newest.becomes("disconnected")
  await pass(3000)
  assert.equal(trial.made.length, 2)
  trial.stop.abort()
  await trial.ended
})

test("while the platform still holds the connection before, the page tries again, slower each time", async () => {
  const trial = new Trial()
  await settle()
  trial.refusals.push(new ApiError("busy", 409), new NoConnectionError(""), new ApiError("away", 503))
  trial.newest.becomes("failed")
  await settle()
  for (const pause of [500, 1000, 2000]) {
    assert.equal(trial.made.length, 1)
    await pass(pause)
  }
  assert.equal(trial.made.length, 2)
  trial.stop.abort()
  await trial.ended
})

test("a refusal that will not change ends it", async () => {
  const trial = new Trial()
  await settle()
  trial.refusals.push(new ApiError("no credit", 402))
  trial.newest.becomes("failed")
  assert.equal(await trial.ended, "ApiError")
})

test("the first time there is no second try", async () => {
  const trial = new Trial(new ApiError("no slot", 503))
  assert.equal(await trial.ended, "ApiError")
})

test("stopping closes the connection", async () => {
  const trial = new Trial()
  await settle()
  trial.stop.abort()
  await trial.ended
  assert.ok(trial.newest.closed)
})
