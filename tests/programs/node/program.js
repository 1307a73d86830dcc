// A Node server and its client, for the end-to-end tests: `node program.js serve HOST PORT` answers HTTP with what it is sent,
// `node program.js load HOST PORT CONNECTIONS REQUESTS` asks it and verifies each answer.
'use strict'

const crypto = require('node:crypto')
const http = require('node:http')

const LARGEST = 256 * 1024
const [what, host, port, connections, requests] = process.argv.slice(2)

function serve() {
  const server = http.createServer((request, answer) => {
    const pieces = []
    request.on('data', (piece) => pieces.push(piece))
    request.on('end', () => answer.end(Buffer.concat(pieces)))
  })
  server.keepAliveTimeout = 60000
  server.listen(Number(port), host)
}

function ask(agent, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, agent, method: 'POST', path: '/echo' }, (answer) => {
      const pieces = []
      answer.on('data', (piece) => pieces.push(piece))
      answer.on('error', reject)
      answer.on('end', () => {
        if (Buffer.concat(pieces).equals(body)) resolve()
        else reject(new Error(`the answer is not the request of ${body.length} bytes`))
      })
    })
    request.on('error', reject)
    request.end(body)
  })
}

async function connection() {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  for (let n = 0; n < Number(requests); n++) {
    await ask(agent, crypto.randomBytes(1 + crypto.randomInt(n % 2 ? LARGEST : 1000)))
  }
  agent.destroy()
}

async function load() {
  await Promise.all(Array.from({ length: Number(connections) }, connection))
  console.log('answered', connections * requests)
}

if (what === 'serve') serve()
else if (what === 'load') load()
else throw new Error(`not a command: ${what}`)
