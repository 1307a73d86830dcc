// A Go server and its clients, for the end-to-end tests: `program serve ADDRESS` answers HTTP with what it is sent, `program load ADDRESS
// CONNECTIONS REQUESTS` asks it and verifies each answer. `program serve-copy ADDRESS` and `program load-copy ADDRESS CONNECTIONS BYTES` do the
// same over plain TCP, with io.Copy from a connection into itself: Go then splices (splice(2)) on non-blocking sockets.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
)

const largest = 256 * 1024

func main() {
	log.SetFlags(0)
	what, address := os.Args[1], os.Args[2]
	switch what {
	case "serve":
		http.HandleFunc("/echo", echo)
		log.Fatal(http.ListenAndServe(address, nil))
	case "serve-copy":
		log.Fatal(serveCopy(address))
	case "load", "load-copy":
		connections, amount := number(os.Args[3]), number(os.Args[4])
		one := ask
		if what == "load-copy" {
			one = stream
		}
		var all sync.WaitGroup
		for n := 0; n < connections; n++ {
			all.Add(1)
			go func(seed int64) {
				defer all.Done()
				if err := one(address, rand.New(rand.NewSource(seed)), amount); err != nil {
					log.Fatal(err)
				}
			}(int64(n))
		}
		all.Wait()
		fmt.Println("answered", connections*amount)
	default:
		log.Fatalf("not a command: %s", what)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return n
}

func echo(answer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	answer.Header().Set("Content-Length", strconv.Itoa(len(body)))
	answer.Write(body)
}

// One connection, requests one after another.
func ask(address string, random *rand.Rand, requests int) error {
	client := http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	for n := 0; n < requests; n++ {
		body := make([]byte, 1+random.Intn(1<<random.Intn(18)))
		random.Read(body)
		answer, err := client.Post("http://"+address+"/echo", "application/octet-stream", bytes.NewReader(body))
		if err != nil {
			return err
		}
		got, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
		if !bytes.Equal(got, body) {
			return fmt.Errorf("request %d: the answer of %d bytes is not the request of %d", n, len(got), len(body))
		}
	}
	return nil
}

func serveCopy(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}

func stream(address string, random *rand.Rand, size int) error {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	sent := make([]byte, size)
	random.Read(sent)
	written := make(chan error, 1)
	go func() {
		for rest := sent; len(rest) > 0; {
			piece := min(len(rest), 1+random.Intn(largest))
			if _, err := connection.Write(rest[:piece]); err != nil {
				written <- err
				return
			}
			rest = rest[piece:]
		}
		written <- connection.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(connection)
	if err != nil {
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("the echo of %d bytes is not the %d bytes that were sent", len(got), len(sent))
	}
	return nil
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}
