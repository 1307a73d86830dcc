//! Istio's CA, played by this process as it was recorded, behind TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use underpass_certs::proto::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use underpass_certs::proto::{IstioCertificateRequest, IstioCertificateResponse};
use underpass_certs::{
    CertificateSource, IstioCa, IstioCaSettings, Istiod, IstiodSecurity, SourceError, chain_and_roots,
};
use underpass_config::Identity;

use crate::authority::{Authority, HOUR, Paper, identity};

const NAME: &str = "istiod.istio-system.svc";

#[derive(Clone, Default)]
struct Ca {
    authority: Arc<Mutex<Option<Arc<Authority>>>>,
    refuse: Arc<Mutex<Option<Status>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// What one request was.
#[derive(Clone, Debug)]
struct Asked {
    token: String,
    cluster: String,
    impersonated: Option<String>,
    validity: i64,
    requested: Vec<String>,
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name: &str| {
            let value = request
                .metadata()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned());
            value.unwrap_or_default()
        };
        let (token, cluster) = (header("authorization"), header("clusterid"));
        let request = request.into_inner();
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
        let names = csr.params.subject_alt_names.iter().map(|name| match name {
            SanType::URI(uri) => uri.to_string(),
            other => format!("{other:?}"),
        });
        let requested: Vec<String> = names.collect();
        let impersonated = request
            .metadata
            .map(|metadata| match &metadata.fields["ImpersonatedIdentity"].kind {
                Some(Kind::StringValue(identity)) => identity.clone(),
                other => panic!("{other:?}"),
            });
        self.asked.lock().unwrap().push(Asked {
            token,
            cluster,
            impersonated: impersonated.clone(),
            validity: request.validity_duration,
            requested,
        });
        if let Some(status) = self.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        // Whatever the request says, the identity is the caller's or the one impersonated.
        let granted = impersonated.unwrap_or_else(|| own().to_string());
        let paper = Paper::of(&granted.parse().unwrap(), SystemTime::now(), HOUR);
        csr.params = paper.params();
        let authority = self.authority.lock().unwrap().clone().unwrap();
        let certificate = csr.signed_by(&authority.issuer).unwrap();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![certificate.pem(), authority.root_pem.clone()],
        }))
    }
}

fn own() -> Identity {
    identity("istio-system", "ztunnel")
}

/// An istiod, and the files with which it is reached.
struct World {
    ca: Ca,
    address: SocketAddr,
    files: TempDir,
    front: AbortHandle,
}

impl World {
    async fn start() -> Self {
        let ca = Ca::default();
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inside = plain.local_addr().unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(IstioCertificateServiceServer::new(ca.clone()))
                .serve_with_incoming(TcpListenerStream::new(plain)),
        );
        let authority = Arc::new(Authority::new());
        *ca.authority.lock().unwrap() = Some(authority.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("root.pem"), &authority.root_pem).unwrap();
        std::fs::write(files.path().join("token"), "first").unwrap();
        let front = front(listener, &authority, inside);
        Self {
            ca,
            address,
            files,
            front,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn client(&self) -> IstioCa {
        let security = IstiodSecurity::Tls {
            roots: self.file("root.pem"),
            server_name: Some(NAME.into()),
        };
        let istiod = Istiod::new(self.address.to_string(), security, Some(self.file("token")));
        let settings = IstioCaSettings {
            own_identity: Some(own()),
            ..IstioCaSettings::new("Kubernetes")
        };
        IstioCa::new(istiod, settings)
    }

    fn last(&self) -> Asked {
        self.ca.asked.lock().unwrap().last().unwrap().clone()
    }
}

/// Speaks TLS with a certificate of `authority`, and passes on what is inside.
fn front(listener: TcpListener, authority: &Authority, inside: SocketAddr) -> AbortHandle {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([NAME.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new(); // ended with this task
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let mut plain = TcpStream::connect(inside).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    task.abort_handle()
}

#[tokio::test]
async fn another_identity_is_asked_for_by_token_and_cluster_and_our_own_without_impersonation() {
    let world = World::start().await;
    let client = world.client();
    let web = identity("shop", "web");
    let certificate = client.obtain(&web).await.unwrap();
    assert_eq!((certificate.identity(), certificate.roots().len()), (&web, 1));
    let asked = world.last();
    assert_eq!((&*asked.token, &*asked.cluster), ("Bearer first", "Kubernetes"));
    assert_eq!(asked.impersonated, Some(web.to_string()));
    assert_eq!((asked.requested, asked.validity), (vec![web.to_string()], 24 * 3600));

    // The token is rotated; the connection stays.
    std::fs::write(world.file("token"), "second\n").unwrap();
    let certificate = client.obtain(&own()).await.unwrap();
    assert_eq!(certificate.identity(), &own());
    assert_eq!(
        (&*world.last().token, world.last().impersonated),
        ("Bearer second", None)
    );
}

#[tokio::test]
async fn refusals_say_whether_asking_again_helps() {
    let world = World::start().await;
    let client = world.client();
    let refused = |status| {
        *world.ca.refuse.lock().unwrap() = Some(status);
    };
    refused(Status::unauthenticated("request authenticate failure"));
    let error = client.obtain(&own()).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthenticated { .. }) && !error.is_permanent());
    assert!(error.to_string().contains("check the token file"), "{error}");
    refused(Status::invalid_argument("CSR signing error"));
    let error = client.obtain(&own()).await.unwrap_err();
    assert!(
        error.is_permanent() && error.to_string().contains("CSR signing error"),
        "{error}"
    );
    refused(Status::unavailable("starting"));
    assert!(!client.obtain(&own()).await.unwrap_err().is_permanent());
    *world.ca.refuse.lock().unwrap() = None;
    client.obtain(&own()).await.unwrap();
    std::fs::remove_file(world.file("token")).unwrap();
    let error = client.obtain(&own()).await.unwrap_err().to_string();
    assert!(error.contains("token for istiod in"), "{error}");
}

/// A CA that answers with another identity than asked for must not give it to a pod.
#[tokio::test]
async fn a_certificate_for_somebody_else_is_not_taken() {
    let world = World::start().await;
    let istiod = Istiod::new(
        world.address.to_string(),
        IstiodSecurity::Tls {
            roots: world.file("root.pem"),
            server_name: Some(NAME.into()),
        },
        None,
    );
    // Takes itself for `shop/web`, but its token is of `ztunnel`.
    let settings = IstioCaSettings {
        own_identity: Some(identity("shop", "web")),
        ..IstioCaSettings::new("Kubernetes")
    };
    let error = IstioCa::new(istiod, settings)
        .obtain(&identity("shop", "web"))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not for spiffe://cluster.local/ns/shop/sa/web"),
        "{error}"
    );
}

#[tokio::test]
async fn a_new_root_is_believed_from_the_next_connection_on_and_only_then() {
    let world = World::start().await;
    let client = world.client();
    client.obtain(&own()).await.unwrap();

    // istiod comes back with a certificate of another root.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = plain.local_addr().unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::new(world.ca.clone()))
            .serve_with_incoming(TcpListenerStream::new(plain)),
    );
    world.front.abort();
    let new = Authority::new();
    let listener = loop {
        match TcpListener::bind(world.address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let _front = front(listener, &new, inside);
    for _ in 0..3 {
        assert!(
            client.obtain(&own()).await.is_err(),
            "a root that is in no file is believed"
        );
    }
    let error = client.obtain(&own()).await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    std::fs::write(world.file("root.pem"), &new.root_pem).unwrap();
    // The connection is made by a try that fails at most with what an earlier one has found.
    let mut last = client.obtain(&own()).await;
    for _ in 0..3 {
        if last.is_err() {
            last = client.obtain(&own()).await;
        }
    }
    assert!(last.is_ok(), "{last:?}");
}

#[tokio::test]
async fn istiod_must_have_the_name_that_is_expected() {
    let world = World::start().await;
    let security = IstiodSecurity::Tls {
        roots: world.file("root.pem"),
        server_name: Some("other.istio-system.svc".into()),
    };
    let error = Istiod::new(world.address.to_string(), security, None)
        .connect()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("NotValidForName") || error.to_string().contains("not valid for name"),
        "{error}"
    );
}

#[test]
fn an_answer_is_a_chain_and_then_roots() {
    let (one, two) = (Authority::new(), Authority::new());
    let both = format!("{}{}", one.root_pem, two.root_pem);
    let counts = |answer: &[&str]| {
        let answer: Vec<String> = answer.iter().map(|text| (*text).to_owned()).collect();
        chain_and_roots(&answer)
            .map(|(chain, roots)| (chain.len(), roots.len()))
            .ok()
    };
    let pem = &*one.root_pem;
    assert_eq!(counts(&[]), None);
    assert_eq!(counts(&[pem]), None);
    assert_eq!(counts(&[pem, pem]), Some((1, 1)));
    assert_eq!(counts(&[pem, pem, pem]), Some((2, 1)));
    assert_eq!(counts(&[pem, &both]), Some((1, 2)));
    assert_eq!(
        counts(&[pem, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"]),
        None
    );
}
