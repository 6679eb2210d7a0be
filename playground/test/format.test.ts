import assert from "node:assert/strict"
import { test } from "node:test"
import { balance, bitrate, cost, duration, milliseconds, pricePerMinute } from "../src/pure/format.ts"

test("a cost shows what a second costs", () => {
  assert.equal(cost(1234, "USD"), "$0.0012")
  assert.equal(cost(12_345_678, "USD"), "$12.3457")
})

test("a balance is never shown larger than it is", () => {
  assert.equal(balance(9_999_999, "USD"), "$9.99")
  assert.equal(balance(0, "EUR"), "€0.00")
})

test("a currency that nobody knows is a number", () => {
  assert.equal(balance(2_500_000, "credits"), "2.50")
})

test("a price is by the minute", () => {
  assert.equal(pricePerMinute(1000, "USD"), "$0.06 a minute")
  assert.equal(pricePerMinute(25, "USD"), "$0.002 a minute")
  assert.equal(pricePerMinute(0, "USD"), "free")
})

test("times are short", () => {
  assert.deepEqual([48.4, 999.4, 1234, 34_500].map(milliseconds), ["48 ms", "999 ms", "1.2 s", "35 s"])
  assert.deepEqual([0, 59_999, 83_000, 3_723_000].map(duration), ["0:00", "0:59", "1:23", "1:02:03"])
})

test("bit rates change their unit where they would have four digits", () => {
  assert.deepEqual([240_000, 999_400, 999_600, 1_250_000].map(bitrate), [
    "240 kbit/s",
    "999 kbit/s",
    "1.0 Mbit/s",
    "1.3 Mbit/s",
  ])
})
