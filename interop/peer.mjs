// A js-libp2p peer that does what it is told over standard input, one order a line, one answer a line.
//
//     node peer.mjs '{"security": ["noise"], "listen": ["/ip4/127.0.0.1/tcp/0"]}'
//
// It begins with {"peer": PEERID, "addresses": [...]}. An order that fails is answered with {"error": MESSAGE}.

import { createHash, randomBytes } from 'node:crypto'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import * as raw from 'multiformats/codecs/raw'
import { makeNode, orders, pieces, say, send } from './node.mjs'

const ECHO = '/interop/echo/1'
const KADEMLIA = '/comity/kad/1.0.0'
const PIECE = 64 * 1024
const STREAMS = 1000
const options = JSON.parse(process.argv[2] ?? '{}')

/**
 * A message's ID as the specification has it: the author's PeerId and the sequence number. Without this, js-libp2p takes
 * the author's public key instead of the PeerId, and nobody else knows the messages under such IDs.
 */
function messageId (message) {
  const number = Buffer.alloc(8)
  number.writeBigUInt64BE(message.sequenceNumber)
  return Buffer.concat([message.from.toMultihash().bytes, number])
}

/** JSON has no 64-bit integers. */
function relayOptions ({ reservations }) {
  return { reservations: { ...reservations, defaultDataLimit: BigInt(reservations.defaultDataLimit) } }
}

const node = await makeNode({
  security: options.security,
  listen: options.listen,
  transports: [circuitRelayTransport()],
  services: {
    identify: identify({ maxOutboundStreams: 8 }),
    ping: ping(),
    pubsub: gossipsub({
      allowPublishToZeroTopicPeers: true,
      globalSignaturePolicy: 'StrictSign',
      msgIdFn: options.gossip?.globalSignaturePolicy === 'StrictNoSign' ? undefined : messageId,
      ...options.gossip
    }),
    dht: kadDHT({ protocol: KADEMLIA, clientMode: false, peerInfoMapper: passthroughMapper, allowQueryWithZeroPeers: true }),
    ...(options.relay == null ? {} : { relay: circuitRelayServer(relayOptions(options.relay)) })
  }
})

const heard = new Map()
node.services.pubsub.addEventListener('message', ({ detail }) => {
  const known = heard.get(detail.topic) ?? []
  heard.set(detail.topic, [...known, { from: detail.from?.toString() ?? '', data: Buffer.from(detail.data).toString('hex') }])
})

const echoed = []

await node.handle(ECHO, async (stream, connection) => {
  const digest = createHash('sha256')
  let count = 0
  for await (const bytes of pieces(stream)) {
    digest.update(bytes)
    count += bytes.byteLength
    await send(stream, bytes)
  }
  await stream.close()
  echoed.push({ peer: connection.remotePeer.toString(), bytes: count, sha256: digest.digest('hex') })
}, { runOnLimitedConnection: true, maxInboundStreams: STREAMS })

/** Send `count` random bytes on a stream; how many have come back, and the digests of both. */
async function echo (stream, count) {
  const sent = createHash('sha256')
  const back = createHash('sha256')
  const reading = (async () => {
    let had = 0
    for await (const bytes of pieces(stream)) {
      had += bytes.byteLength
      back.update(bytes)
    }
    return had
  })()
  for (let done = 0; done < count; done += PIECE) {
    const piece = randomBytes(Math.min(PIECE, count - done))
    sent.update(piece)
    await send(stream, piece)
  }
  await stream.close()
  const had = await reading
  return { bytes: had, sent: sent.digest('hex'), back: back.digest('hex') }
}

/** How a connection was made, and who has proved to be at its other end. */
const describe = connection => ({
  peer: connection.remotePeer.toString(),
  security: connection.encryption,
  muxer: connection.multiplexer,
  direction: connection.direction,
  address: connection.remoteAddr.toString(),
  limited: connection.limits != null
})

const cid = key => CID.createV1(raw.code, Digest.decode(Buffer.from(key, 'hex')))

/** Who provides a key, and where they are; null if they are fewer than `count`. */
async function find (key, count) {
  const found = new Map()
  for await (const event of node.services.dht.findProviders(cid(key))) {
    for (const peer of event.providers ?? []) {
      found.set(peer.id.toString(), peer.multiaddrs.map(String))
    }
  }
  return found.size >= count ? [...found].map(([peer, addresses]) => ({ peer, addresses })) : null
}

async function until (check, milliseconds = 20000) {
  const stop = Date.now() + milliseconds
  for (;;) {
    const value = await check()
    if (value) {
      return value
    }
    if (Date.now() > stop) {
      throw new Error('it did not happen in time')
    }
    await new Promise(resolve => setTimeout(resolve, 25))
  }
}

const actions = {
  reserved: async ({ relay }) => ({
    addresses: await until(() => {
      const all = node.getMultiaddrs().map(String).filter(each => each.startsWith(`${relay}/p2p-circuit`))
      return all.length > 0 && all
    })
  }),
  dial: async ({ address }) => {
    const connection = await node.dial(multiaddr(address))
    return describe(connection)
  },
  connections: ({ peer }) => ({
    connections: node.getConnections().filter(each => each.remotePeer.toString() === peer).map(describe)
  }),
  echoed: async ({ count }) => ({ streams: await until(() => echoed.length >= count && echoed) }),
  hangup: async ({ address }) => {
    await node.hangUp(multiaddr(address))
    return {}
  },
  ping: async ({ address }) => ({ milliseconds: await node.services.ping.ping(multiaddr(address)) }),
  echo: async ({ address, bytes }) =>
    await echo(await node.dialProtocol(multiaddr(address), ECHO, { runOnLimitedConnection: true, maxOutboundStreams: STREAMS }), bytes),
  echoes: async ({ address, bytes, streams }) =>
    ({ streams: await Promise.all(Array.from({ length: streams }, () => actions.echo({ address, bytes }))) }),
  speak: async ({ address, protocol }) => {
    const stream = await node.dialProtocol(multiaddr(address), protocol)
    stream.abort(new Error('that was all'))
    return {}
  },
  identify: async ({ address }) => {
    const about = await node.services.identify.identify(await node.dial(multiaddr(address)))
    return {
      agent: about.agentVersion,
      protocols: about.protocols,
      observed: String(about.observedAddr),
      addresses: about.listenAddrs.map(String)
    }
  },
  subscribe: ({ topic }) => {
    node.services.pubsub.subscribe(topic)
    return {}
  },
  subscribers: async ({ topic, count }) =>
    ({ peers: await until(() => { const all = node.services.pubsub.getSubscribers(topic); return all.length >= count && all.map(String) }) }),
  mesh: async ({ topic, count }) =>
    ({ peers: await until(() => { const all = node.services.pubsub.getMeshPeers(topic); return all.length >= count && all }) }),
  publish: async ({ topic, data }) => {
    const { recipients } = await node.services.pubsub.publish(topic, Buffer.from(data, 'hex'))
    return { recipients: recipients.map(String) }
  },
  heard: async ({ topic, count }) => ({ messages: await until(() => { const all = heard.get(topic) ?? []; return all.length >= count && all }) }),
  routing: async ({ peer }) => {
    const { routingTable } = node.services.dht
    await until(async () => {
      const id = node.getPeers().find(each => each.toString() === peer)
      return id != null && await routingTable.find(id) != null
    })
    return {}
  },
  provide: async ({ key, local = false }) => {
    if (local) {
      await node.services.dht.providers.addProvider(cid(key), node.peerId)
      return {}
    }
    for await (const _ of node.services.dht.provide(cid(key))) { /* until all were told */ }
    return {}
  },
  find: async ({ key, count = 0 }) => ({ providers: await until(() => find(key, count)) })
}

say({ peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const order of orders()) {
  try {
    say(await actions[order.do](order))
  } catch (error) {
    say({ error: String(error?.stack ?? error) })
  }
}
process.exit(0)
