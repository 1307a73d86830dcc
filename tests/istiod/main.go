// istiod-harness runs istiod without Kubernetes: the discovery server and certificate authority of Istio, as a library,
// against an API server that is a directory of YAML files.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"istio.io/istio/pilot/pkg/bootstrap"
	"istio.io/istio/pkg/config/schema/collections"
	istiolog "istio.io/istio/pkg/log"

	"istiod-harness/manifests"
	"istiod-harness/objectstore"
)

var (
	objects    = flag.String("objects", "", "directory of YAML files with Kubernetes objects; changes are applied as they happen")
	grpcAddr   = flag.String("grpc", "127.0.0.1:15010", "plaintext xDS address")
	secureAddr = flag.String("secure-grpc", "127.0.0.1:15012", "TLS xDS and certificate authority address (\"\" turns it off)")
	httpAddr   = flag.String("http", "127.0.0.1:15080", "readiness and debug address")
	apiAddr    = flag.String("api", "127.0.0.1:0", "address of the Kubernetes API that the objects are served on")
	remote     = flag.String("remote", "", "NAME=DIR: a second cluster NAME with the objects of DIR, known to istiod by a remote secret")
	meshConfig = flag.String("mesh-config", "", "MeshConfig YAML file")
	certs      = flag.String("certs", "", "directory to write the root certificate to, as root-cert.pem")
	kubeconfig = flag.String("kubeconfig", "", "file to write a kubeconfig for the Kubernetes API to")
	logLevel   = flag.String("log", "warn", "istiod's log level")
	ca         = flag.String("ca", "", "file that keeps the certificate authority, so that the next istiod has the same one")
	watchEvery = flag.Duration("every", 200*time.Millisecond, "how often to look for changed objects")
)

// environment holds istiod's settings. Istio reads them when its packages are initialized, so main restarts itself with
// them; a variable that is already set wins.
var environment = map[string]string{
	"PILOT_ENABLE_AMBIENT":                             "true",
	"AMBIENT_ENABLE_STATUS":                            "false",
	"PILOT_ENABLE_STATUS":                              "false",
	"PILOT_ENABLE_GATEWAY_API_STATUS":                  "false",
	"PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER":   "false",
	"PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER": "false",
	"ENABLE_LEADER_ELECTION":                           "false",
	"CA_TRUSTED_NODE_ACCOUNTS":                         "istio-system/ztunnel,node-waypoint/node-waypoint",
	"PILOT_DEBOUNCE_AFTER":                             "50ms",
}

const restarted = "ISTIOD_HARNESS_RESTARTED"

func main() {
	flag.Parse()
	if *objects == "" {
		log.Fatal("--objects is required")
	}
	restart()
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func restart() {
	if os.Getenv(restarted) != "" {
		return
	}
	for k, v := range environment {
		if _, set := os.LookupEnv(k); !set {
			os.Setenv(k, v)
		}
	}
	os.Setenv(restarted, "yes")
	self, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(syscall.Exec(self, os.Args, os.Environ()))
}

func run() error {
	stopped, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()

	store, directory, api, err := serveCluster(*objects, *apiAddr)
	if err != nil {
		return err
	}
	if err := recallCA(store); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "istiod-harness")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	config := *kubeconfig
	if config == "" {
		config = filepath.Join(scratch, "kubeconfig")
	}
	if err := os.WriteFile(config, []byte(kubeconfigFor(api)), 0o600); err != nil {
		return err
	}
	if name, dir, ok := strings.Cut(*remote, "="); ok {
		_, far, api, err := serveCluster(dir, "127.0.0.1:0")
		if err != nil {
			return err
		}
		store.Put(remoteSecret(name, api))
		go far.Watch(*watchEvery)
	}

	options := istiolog.DefaultOptions()
	options.SetDefaultOutputLevel("all", levels[*logLevel])
	if err := istiolog.Configure(options); err != nil {
		return err
	}
	server, err := bootstrap.NewServer(arguments(config))
	if err != nil {
		return fmt.Errorf("istiod: %w", err)
	}
	if err := server.Start(stopped.Done()); err != nil {
		return fmt.Errorf("istiod: %w", err)
	}
	if err := waitReady(stopped); err != nil {
		return err
	}
	if err := writeRoot(stopped, store); err != nil {
		return err
	}
	if err := keepCA(store); err != nil {
		return err
	}
	go directory.Watch(*watchEvery)
	fmt.Println("ready")
	<-stopped.Done()
	server.WaitUntilCompletion()
	return nil
}

// serveCluster starts the API server of one cluster and returns its address.
func serveCluster(dir, address string) (*objectstore.Store, *manifests.Directory, string, error) {
	store := objectstore.New(kinds())
	installCRDs(store)
	directory, err := manifests.Open(dir, store)
	if err != nil {
		return nil, nil, "", err
	}
	api, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nil, "", err
	}
	go http.Serve(api, store)
	return store, directory, api.Addr().String(), nil
}

// remoteSecret is what "istioctl create-remote-secret" would write.
func remoteSecret(cluster, address string) (objectstore.Kind, objectstore.Object) {
	return secrets, objectstore.Object{
		"metadata": map[string]any{
			"namespace": "istio-system", "name": "istio-remote-secret-" + cluster,
			"labels":      map[string]any{"istio/multiCluster": "true"},
			"annotations": map[string]any{"networking.istio.io/cluster": cluster},
		},
		"data": map[string]any{cluster: base64.StdEncoding.EncodeToString([]byte(kubeconfigFor(address)))},
	}
}

var levels = map[string]istiolog.Level{
	"debug": istiolog.DebugLevel, "info": istiolog.InfoLevel, "warn": istiolog.WarnLevel, "error": istiolog.ErrorLevel,
}

func arguments(kubeconfig string) *bootstrap.PilotArgs {
	return bootstrap.NewPilotArgs(func(a *bootstrap.PilotArgs) {
		a.Namespace = "istio-system"
		a.PodName = "istiod-harness"
		a.MeshConfigFile = *meshConfig
		if *meshConfig == "" {
			a.MeshConfigFile = "no mesh config file"
		}
		a.NetworksConfigFile = "no mesh networks file"
		a.RegistryOptions.Registries = []string{"Kubernetes"}
		a.RegistryOptions.KubeConfig = kubeconfig
		a.RegistryOptions.KubeOptions.DomainSuffix = "cluster.local"
		a.RegistryOptions.KubeOptions.ClusterID = "Kubernetes"
		a.RegistryOptions.KubeOptions.KubernetesAPIQPS = 1000
		a.RegistryOptions.KubeOptions.KubernetesAPIBurst = 2000
		a.ServerOptions.HTTPAddr = *httpAddr
		a.ServerOptions.MonitoringAddr = "127.0.0.1:0"
		a.ServerOptions.GRPCAddr = *grpcAddr
		a.ServerOptions.SecureGRPCAddr = *secureAddr
		a.ShutdownDuration = time.Second
	})
}

// kinds are all the kinds istiod knows, and the few that it only uses through its API client.
func kinds() []objectstore.Kind {
	out := []objectstore.Kind{
		{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenReview", Plural: "tokenreviews"},
		{Group: "", Version: "v1", Kind: "Event", Plural: "events", Namespaced: true},
	}
	for _, s := range collections.All.All() {
		out = append(out, objectstore.Kind{
			Group: s.Group(), Version: s.Version(), Kind: s.Kind(), Plural: s.Plural(), Namespaced: !s.IsClusterScoped(),
		})
	}
	return out
}

// installCRDs announces Istio's and Gateway API's kinds; istiod watches a custom kind only when its CRD exists.
func installCRDs(store *objectstore.Store) {
	crd := objectstore.Kind{
		Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions",
	}
	for _, s := range collections.All.All() {
		if s.IsBuiltin() {
			continue
		}
		store.Put(crd, objectstore.Object{
			"metadata": map[string]any{
				"name":        s.Plural() + "." + s.Group(),
				"annotations": map[string]any{"gateway.networking.k8s.io/bundle-version": "v1.6.0"},
			},
			"spec": map[string]any{"group": s.Group()},
		})
	}
}

func kubeconfigFor(address string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: harness, cluster: {server: "http://%s"}}]
contexts: [{name: harness, context: {cluster: harness, user: harness}}]
users: [{name: harness, user: {}}]
current-context: harness
`, address)
}

func waitReady(stopped context.Context) error {
	for stopped.Err() == nil {
		response, err := http.Get("http://" + *httpAddr + "/ready")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return stopped.Err()
}

// writeRoot waits for istiod's self-signed root (it keeps it in a Secret) and writes it where clients can read it.
func writeRoot(stopped context.Context, store *objectstore.Store) error {
	if *certs == "" {
		return nil
	}
	configMap := objectstore.Kind{Version: "v1", Kind: "ConfigMap", Plural: "configmaps", Namespaced: true}
	for stopped.Err() == nil {
		for _, namespace := range []string{"istio-system", "default"} {
			o, _ := store.Get(configMap, namespace+"/istio-ca-root-cert")
			if pem := objectstore.String(o, "data", "root-cert.pem"); pem != "" {
				if err := os.MkdirAll(*certs, 0o755); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(*certs, "root-cert.pem"), []byte(pem), 0o644)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return stopped.Err()
}

var secrets = objectstore.Kind{Version: "v1", Kind: "Secret", Plural: "secrets", Namespaced: true}

// caSecrets are where istiod keeps its self-signed authority, whichever of them it uses.
var caSecrets = []string{"istio-system/istio-ca-secret", "istio-system/cacerts"}

// keepCA writes the authority that istiod has made to a file. A cluster keeps it in its API server, which here ends with
// istiod.
func keepCA(store *objectstore.Store) error {
	if *ca == "" {
		return nil
	}
	for _, key := range caSecrets {
		if secret, ok := store.Get(secrets, key); ok {
			text, err := json.Marshal(secret)
			if err != nil {
				return err
			}
			return os.WriteFile(*ca, text, 0o600)
		}
	}
	return fmt.Errorf("istiod has made no authority to keep in %s", *ca)
}

// recallCA gives istiod the authority of an earlier one, if there was one.
func recallCA(store *objectstore.Store) error {
	text, err := os.ReadFile(*ca)
	if *ca == "" || os.IsNotExist(err) {
		return nil
	}
	var secret objectstore.Object
	if err == nil {
		err = json.Unmarshal(text, &secret)
	}
	if err != nil {
		return fmt.Errorf("the kept authority: %w", err)
	}
	store.Put(secrets, secret)
	return nil
}
