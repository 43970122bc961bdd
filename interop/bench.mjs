// js-libp2p as an arm of `make bench-links`; the orders are those of bench/links/arm.py.
//
//     node bench.mjs js-libp2p server DIRECTORY
//     node bench.mjs js-libp2p client DIRECTORY

import { multiaddr } from '@multiformats/multiaddr'
import { bytesOf, makeNode, orders, say, send } from './node.mjs'

const REQUEST = '/bench/request/1'
const BULK = '/bench/bulk/1'
const LIMITS = { maxInboundStreams: 2000, maxOutboundStreams: 2000 }

/** Resolve when `wanted` bytes have come. */
async function receive (stream, wanted) {
  let left = wanted
  for await (const piece of stream) {
    left -= piece.byteLength
    if (left <= 0) {
      return
    }
  }
  throw new Error('the stream ended early')
}

async function answer (stream) {
  let wanted = -1
  let had = 0
  const pieces = []
  for await (const piece of stream) {
    const bytes = bytesOf(piece)
    pieces.push(bytes)
    had += bytes.byteLength
    if (wanted < 0 && had >= 4) {
      wanted = 4 + Buffer.concat(pieces).readUInt32BE(0)
    }
    if (wanted >= 0 && had >= wanted) {
      break
    }
  }
  await send(stream, Buffer.concat(pieces).subarray(4))
  await stream.close()
}

async function count (stream) {
  let left = -1n
  let head = Buffer.alloc(0)
  for await (const piece of stream) {
    const bytes = bytesOf(piece)
    if (left < 0n) {
      head = Buffer.concat([head, bytes])
      if (head.byteLength < 8) {
        continue
      }
      left = head.readBigUInt64BE(0) - BigInt(head.byteLength - 8)
    } else {
      left -= BigInt(bytes.byteLength)
    }
    if (left === 0n) {
      break
    }
  }
  await send(stream, Buffer.from('!'))
  await stream.close()
}

/** Both ends serve both protocols: js-libp2p opens a stream faster for a protocol that it serves itself. */
async function start (options) {
  const node = await makeNode({ security: ['noise'], ...options })
  await node.handle(REQUEST, answer, LIMITS)
  await node.handle(BULK, count, LIMITS)
  return node
}

async function serve () {
  const node = await start()
  say({ address: node.getMultiaddrs()[0].toString() })
  for await (const _ of orders()) { /* until the input ends */ }
  process.exit(0)
}

async function drive () {
  const input = orders()
  const { address } = (await input.next()).value
  const target = multiaddr(address)
  const node = await start({ listen: [] })
  let connection = await node.dial(target)
  for await (const order of input) {
    if (order.work === 'connect') {
      await connection.close()
      const began = performance.now()
      connection = await node.dial(target)
      say({ seconds: (performance.now() - began) / 1000 })
    } else if (order.work === 'request') {
      say(await request(connection, order))
    } else {
      say(await bulk(connection, order))
    }
  }
  process.exit(0)
}

async function request (connection, order) {
  const message = Buffer.alloc(4 + order.size)
  message.writeUInt32BE(order.size)
  const began = performance.now()
  const stop = began + order.seconds * 1000
  let done = 0
  const one = async () => {
    while (performance.now() < stop) {
      const stream = await connection.newStream(REQUEST, LIMITS)
      await send(stream, message)
      await receive(stream, order.size)
      await stream.close()
      done++
    }
  }
  await Promise.all(Array.from({ length: order.in_flight }, one))
  return { count: done, seconds: (performance.now() - began) / 1000 }
}

async function bulk (connection, order) {
  const piece = Buffer.alloc(order.piece)
  const head = Buffer.alloc(8)
  head.writeBigUInt64BE(BigInt(order.bytes))
  const began = performance.now()
  const stream = await connection.newStream(BULK, LIMITS)
  await send(stream, head)
  for (let sent = 0; sent < order.bytes; sent += order.piece) {
    await send(stream, piece)
  }
  await receive(stream, 1)
  const seconds = (performance.now() - began) / 1000
  await stream.close()
  return { count: order.bytes, seconds }
}

await (process.argv[3] === 'server' ? serve() : drive())
