// Says whether Kubernetes objects are what their kinds are declared to be: each document of the standard input is decoded into the Go type of its
// apiVersion and kind, strictly, so that a field that does not exist, one that is written twice and one of another type are errors; so is a kind
// that is not known here. What it understood is printed as a JSON array.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

func main() {
	objects, err := decodeAll(os.Stdin)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(objects)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "objects:", err)
		os.Exit(1)
	}
}

func decodeAll(input io.Reader) ([]runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, apps.AddToScheme, gateway.Install, monitoring.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(input))
	objects := []runtime.Object{}
	for number := 1; ; number++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		if isEmpty(text) {
			continue
		}
		object, kind, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		// The decoder keeps what it was decoded as to itself.
		object.GetObjectKind().SetGroupVersionKind(*kind)
		objects = append(objects, object)
	}
}

// Whether a document has nothing but comments and blanks.
func isEmpty(text []byte) bool {
	json, err := yaml.ToJSON(text)
	return err == nil && (len(json) == 0 || string(json) == "null")
}
