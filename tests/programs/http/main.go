// A server of HTTP/1.1 and of HTTP/2 without TLS by Go's net/http, and a client of either, for the end-to-end tests.
//
//	program serve ADDRESS FOLDER                 GET gives the folder's files, PUT what it is sent; /early refuses before it reads, /trailers ends with one
//	program ask http1|http2 BASE SHA256 DEEDS    asks for all of it below BASE, verifies each answer; DEEDS: of early,trailers those that the server does
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"time"
)

const (
	requests = 20
	upload   = 3 << 20
	refused  = 8 << 20
)

func main() {
	log.SetFlags(0)
	switch what := os.Args[1]; what {
	case "serve":
		log.Fatal(serve(os.Args[2], os.Args[3]))
	case "ask":
		client := &asker{client: client(os.Args[2]), base: os.Args[3], major: map[string]int{"http1": 1, "http2": 2}[os.Args[2]]}
		if err := client.all(os.Args[4], os.Args[5]); err != nil {
			log.Fatal(err)
		}
		fmt.Println("all as it should be")
	default:
		log.Fatalf("not a command: %s", what)
	}
}

func serve(address, folder string) error {
	files := http.FileServer(http.Dir(folder))
	handler := http.NewServeMux()
	handler.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		if request.Method != http.MethodPut {
			files.ServeHTTP(answer, request)
			return
		}
		io.Copy(answer, request.Body)
	})
	handler.HandleFunc("/early", func(answer http.ResponseWriter, request *http.Request) {
		http.Error(answer, "too large", http.StatusRequestEntityTooLarge)
	})
	handler.HandleFunc("/trailers", func(answer http.ResponseWriter, request *http.Request) {
		answer.Header().Set("Trailer", "X-Sum")
		io.WriteString(answer, "summed up")
		answer.Header().Set("X-Sum", "9")
	})
	server := http.Server{Addr: address, Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	// What is sent back while it is still coming goes both ways at once, by HTTP/1.1 too.
	server.Handler = http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		http.NewResponseController(answer).EnableFullDuplex()
		handler.ServeHTTP(answer, request)
	})
	return server.ListenAndServe()
}

func client(speaks string) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols), ExpectContinueTimeout: time.Minute, DisableCompression: true}
	transport.Protocols.SetHTTP1(speaks == "http1")
	transport.Protocols.SetUnencryptedHTTP2(speaks == "http2")
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

type asker struct {
	client *http.Client
	base   string
	major  int
}

func (a *asker) all(sum, deeds string) error {
	if err := a.keepAlive(); err != nil {
		return fmt.Errorf("keep-alive: %w", err)
	}
	large, _, err := a.do(http.MethodGet, "/large", nil, nil, http.StatusOK)
	if err != nil {
		return fmt.Errorf("large: %w", err)
	}
	if got := sha256.Sum256(large); hex.EncodeToString(got[:]) != sum {
		return fmt.Errorf("the %d bytes of /large are others", len(large))
	}
	// A reader of bytes says how many there are; one of anything else does not.
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"length":  func(body io.Reader) io.Reader { return body },
		"unknown": func(body io.Reader) io.Reader { return struct{ io.Reader }{body} },
	} {
		for _, expect := range []string{"", "100-continue"} {
			if err := a.upload("/kept-"+name, wrap, expect); err != nil {
				return fmt.Errorf("an upload of %s length, expecting %q: %w", name, expect, err)
			}
		}
	}
	if strings.Contains(deeds, "early") {
		if _, _, err := a.do(http.MethodPut, "/early", bytes.NewReader(make([]byte, refused)), nil, http.StatusRequestEntityTooLarge); err != nil {
			return fmt.Errorf("an early answer: %w", err)
		}
	}
	// By HTTP/1.1 they end at the proxy, as at Envoy.
	if strings.Contains(deeds, "trailers") && a.major == 2 {
		_, answer, err := a.do(http.MethodGet, "/trailers", nil, nil, http.StatusOK)
		if err != nil {
			return fmt.Errorf("trailers: %w", err)
		}
		if got := answer.Trailer.Get("X-Sum"); got != "9" {
			return fmt.Errorf("trailers: %v", answer.Trailer)
		}
	}
	return nil
}

func (a *asker) keepAlive() error {
	connections := 0
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if !got.Reused {
			connections++
		}
	}}
	for n := 0; n < requests; n++ {
		body, answer, err := a.do(http.MethodGet, "/small", nil, trace, http.StatusOK)
		if err != nil {
			return err
		}
		if string(body) != strings.Repeat("x", 1000) || answer.ProtoMajor != a.major {
			return fmt.Errorf("%d bytes by %s", len(body), answer.Proto)
		}
	}
	if connections != 1 {
		return fmt.Errorf("%d connections", connections)
	}
	return nil
}

func (a *asker) upload(path string, wrap func(io.Reader) io.Reader, expect string) error {
	sent := make([]byte, upload)
	rand.Read(sent)
	request, err := http.NewRequest(http.MethodPut, a.base+path, wrap(bytes.NewReader(sent)))
	if err != nil {
		return err
	}
	if expect != "" {
		request.Header.Set("Expect", expect)
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil {
		return err
	}
	if answer.StatusCode == http.StatusCreated || answer.StatusCode == http.StatusNoContent {
		// It was put into a file.
		if got, _, err = a.do(http.MethodGet, path, nil, nil, http.StatusOK); err != nil {
			return err
		}
	} else if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Status)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came of %d, or others", len(got), len(sent))
	}
	return nil
}

func (a *asker) do(method, path string, body io.Reader, trace *httptrace.ClientTrace, status int) ([]byte, *http.Response, error) {
	request, err := http.NewRequest(method, a.base+path, body)
	if err != nil {
		return nil, nil, err
	}
	if trace != nil {
		request = request.WithContext(httptrace.WithClientTrace(request.Context(), trace))
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != status {
		return nil, nil, fmt.Errorf("%s, not %d", answer.Status, status)
	}
	got, err := io.ReadAll(answer.Body)
	return got, answer, err
}
