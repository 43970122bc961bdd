// A js-libp2p node as both programs here use it: TCP, Noise and TLS, Yamux.

import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { tcp } from '@libp2p/tcp'
import { tls } from '@libp2p/tls'
import { createLibp2p } from 'libp2p'

/** Make and start a node. `security` is a list of "noise" and "tls"; the rest is what createLibp2p takes. */
export async function makeNode ({ security = ['noise', 'tls'], listen = ['/ip4/127.0.0.1/tcp/0'], transports = [], ...rest }) {
  const known = { noise: noise(), tls: tls() }
  return await createLibp2p({
    addresses: { listen },
    transports: [tcp(), ...transports],
    connectionEncrypters: security.map(name => known[name]),
    streamMuxers: [yamux()],
    connectionManager: { maxIncomingPendingConnections: 100, inboundConnectionThreshold: 1000 },
    ...rest
  })
}

/** Write one line of JSON. */
export function say (value) {
  process.stdout.write(JSON.stringify(value) + '\n')
}

/** The lines of standard input, parsed. */
export async function * orders () {
  for await (const line of createInterface({ input: process.stdin })) {
    yield JSON.parse(line)
  }
}

/**
 * What a stream delivers until the other side ends it. A stream's own iterator never ends when it begins after the end
 * was announced, as it does when a peer sends everything at once with its proposal of the protocol.
 */
export async function * pieces (stream) {
  const queue = []
  let wake = () => {}
  const onMessage = ({ data }) => { queue.push(data); wake() }
  const onChange = () => wake()
  stream.addEventListener('message', onMessage)
  stream.addEventListener('end', onChange)
  stream.addEventListener('close', onChange)
  try {
    for (;;) {
      while (queue.length > 0) {
        yield bytesOf(queue.shift())
      }
      if (stream.readableEnded && stream.readBufferLength === 0) {
        return
      }
      if (stream.status === 'reset' || stream.status === 'aborted') {
        throw new Error('the stream broke')
      }
      await new Promise(resolve => { wake = resolve })
    }
  } finally {
    stream.removeEventListener('message', onMessage)
    stream.removeEventListener('end', onChange)
    stream.removeEventListener('close', onChange)
  }
}

/** The bytes of a piece that a stream delivers. */
export function bytesOf (piece) {
  return piece instanceof Uint8Array ? piece : piece.subarray()
}

/** Send all of `data`, waiting while the stream is full. */
export async function send (stream, data) {
  if (!stream.send(data)) {
    await stream.onDrain()
  }
}
