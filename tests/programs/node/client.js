// A client of HTTP/1.1 or HTTP/2 by Node's http and http2, for the end-to-end tests.
//
// node client.js http1|http2 BASE SHA256 DEEDS: asks for all that the servers of these tests have below BASE and verifies each answer; DEEDS: of
// early,trailers those that the server does.
'use strict'

const assert = require('node:assert')
const crypto = require('node:crypto')
const http = require('node:http')
const http2 = require('node:http2')

const REQUESTS = 20
const UPLOAD = 3 << 20
const REFUSED = 8 << 20
const PIECE = 100000
const [speaks, base, sha256, deeds] = process.argv.slice(2)
const { hostname, port, pathname, origin } = new URL(base)

// Each asks once; the answer is {status, body, trailers}. A body is an array of pieces; has no length said beforehand if `unknown`.
const ways = {
  http1() {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
    const sockets = new Set()
    return {
      connections: () => sockets.size,
      close: () => agent.destroy(),
      ask: (method, path, pieces = [], unknown = false) => new Promise((resolve, reject) => {
        const headers = unknown || !pieces.length ? {} : { 'content-length': total(pieces) }
        const request = http.request({ hostname, port, agent, method, path: pathname + path, headers })
        request.on('socket', (socket) => sockets.add(socket))
        answered(request, resolve, reject, (answer) => answer.statusCode, 'response')
        send(request, pieces)
      }),
    }
  },
  http2() {
    const session = http2.connect(origin)
    return {
      connections: () => 1,
      close: () => session.close(),
      ask: (method, path, pieces = [], unknown = false) => new Promise((resolve, reject) => {
        const headers = { ':method': method, ':path': pathname + path }
        if (pieces.length && !unknown) headers['content-length'] = total(pieces)
        const stream = session.request(headers, { endStream: !pieces.length })
        session.on('error', reject)
        answered(stream, resolve, reject, (headers) => headers[':status'], 'response')
        if (pieces.length) send(stream, pieces)
      }),
    }
  },
}

function total(pieces) {
  return pieces.reduce((sum, piece) => sum + piece.length, 0)
}

function answered(request, resolve, reject, status, event) {
  let answeredWith
  // A server that has answered early may stop reading.
  request.on('error', (error) => answeredWith || reject(error))
  request.on(event, (answer) => {
    answeredWith = status(answer)
    const body = answer.on ? answer : request
    const pieces = []
    let trailers = {}
    request.on('trailers', (got) => { trailers = got })
    body.on('data', (piece) => pieces.push(piece))
    body.on('error', reject)
    body.on('end', () => resolve({ status: answeredWith, body: Buffer.concat(pieces), trailers }))
  })
}

async function send(request, pieces) {
  for (const piece of pieces) {
    if (request.destroyed) return
    if (!request.write(piece)) {
      await new Promise((resolve) => { request.once('drain', resolve); request.once('close', resolve) })
    }
  }
  request.end()
}

function cut(body) {
  const pieces = []
  for (let at = 0; at < body.length; at += PIECE) pieces.push(body.subarray(at, at + PIECE))
  return pieces
}

async function upload(way, path, unknown) {
  const sent = crypto.randomBytes(UPLOAD)
  let { status, body } = await way.ask('PUT', path, cut(sent), unknown)
  // It was put into a file.
  if (status === 201 || status === 204) ({ status, body } = await way.ask('GET', path))
  assert.strictEqual(status, 200, path)
  assert(body.equals(sent), `${path}: ${body.length} of ${sent.length} bytes, or others`)
}

async function all() {
  const way = ways[speaks]()
  for (let n = 0; n < REQUESTS; n++) {
    const { status, body } = await way.ask('GET', '/small')
    assert.strictEqual(status, 200, '/small')
    assert.strictEqual(body.toString(), 'x'.repeat(1000))
  }
  assert.strictEqual(way.connections(), 1, 'connections')
  const large = await way.ask('GET', '/large')
  assert.strictEqual(crypto.createHash('sha256').update(large.body).digest('hex'), sha256, '/large')
  await upload(way, '/kept-length', false)
  await upload(way, '/kept-unknown', true)
  if (deeds.includes('early')) {
    const { status } = await way.ask('PUT', '/early', cut(Buffer.alloc(REFUSED)))
    assert.strictEqual(status, 413, '/early')
  }
  // By HTTP/1.1 they end at the proxy, as at Envoy.
  if (deeds.includes('trailers') && speaks === 'http2') {
    const { trailers } = await way.ask('GET', '/trailers')
    assert.strictEqual(trailers['x-sum'], '9', '/trailers')
  }
  way.close()
  console.log('all as it should be')
}

all().catch((error) => {
  console.error(error)
  process.exit(1)
})
