//! A control plane for one node: an ADS server with TLS that sends a synthetic mesh, then changes of it, each when it is told to, and says when the node
//! has acknowledged them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context as TaskContext, Poll};
use std::thread;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc as channel;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use underpass_tests::Issued;
use underpass_xds_client::ResourceType;
use underpass_xds_client::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use underpass_xds_client::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use super::synthetic::Synthetic;

/// A server that runs as long as the program.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    changes: channel::UnboundedSender<u32>,
    acknowledged: mpsc::Receiver<()>,
}

impl ControlPlane {
    /// Serves `mesh` on loopback, with this certificate.
    pub(crate) fn start(mesh: Synthetic, certificate: &Issued) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let tls = TlsAcceptor::from(Arc::new(tls(certificate)?));
        let (changes, orders) = channel::unbounded_channel();
        let (acknowledge, acknowledged) = mpsc::channel();
        let ads = Ads(Mutex::new(Some(Service {
            mesh,
            orders,
            acknowledge,
        })));
        let (sockets, incoming) = channel::channel(1);
        thread::spawn(move || {
            runtime.block_on(async move {
                tokio::spawn(accept(listener, tls, sockets));
                let server =
                    tonic::transport::Server::builder().add_service(AggregatedDiscoveryServiceServer::new(ads));
                if let Err(error) = server.serve_with_incoming(ReceiverStream::new(incoming)).await {
                    eprintln!("the control plane has ended: {error}");
                }
            });
        });
        Ok(Self {
            address,
            changes,
            acknowledged,
        })
    }

    /// Waits until the node has acknowledged the whole mesh.
    pub(crate) fn wait_until_synced(&self) -> Result<()> {
        self.wait()
    }

    /// Sends a change, and waits until the node has acknowledged it.
    pub(crate) fn change(&self, number: u32) -> Result<()> {
        self.changes.send(number).context("the node's stream has ended")?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let waited = self.acknowledged.recv_timeout(super::DEADLINE);
        waited.context("the node has rejected what was sent, or its stream has ended")
    }
}

fn tls(certificate: &Issued) -> Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&certificate.chain)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&certificate.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, sockets: channel::Sender<io::Result<Secured>>) {
    while let Ok((socket, _)) = listener.accept().await {
        match tls.accept(socket).await {
            Ok(stream) => drop(sockets.send(Ok(Secured(stream))).await),
            Err(error) => eprintln!("the control plane's handshake: {error}"),
        }
    }
}

/// What one node is served with; there is only one.
struct Service {
    mesh: Synthetic,
    orders: channel::UnboundedReceiver<u32>,
    acknowledge: mpsc::Sender<()>,
}

struct Ads(Mutex<Option<Service>>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let service = self.0.lock().ok().and_then(|mut service| service.take());
        let service = service.ok_or_else(|| Status::unavailable("the node has connected before"))?;
        let (responses, outgoing) = channel::channel(1);
        tokio::spawn(serve(service, request.into_inner(), responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Responses = channel::Sender<Result<DeltaDiscoveryResponse, Status>>;

async fn serve(mut service: Service, mut requests: Streaming<DeltaDiscoveryRequest>, responses: Responses) {
    let push = async |kind: ResourceType, resources: Vec<Resource>, nonce: &str| {
        let response = DeltaDiscoveryResponse {
            type_url: kind.url().into(),
            resources,
            nonce: nonce.into(),
            ..Default::default()
        };
        responses.send(Ok(response)).await.is_ok()
    };
    push(ResourceType::Authorization, Vec::new(), "policies").await;
    push(ResourceType::Address, service.mesh.all(), "all").await;
    let mut last = "all".to_owned();
    loop {
        tokio::select! {
            Ok(Some(request)) = requests.message() => {
                // A rejection is not an acknowledgement: whoever waits gives up.
                if request.response_nonce == last && request.error_detail.is_none() {
                    let _ = service.acknowledge.send(());
                }
            }
            Some(change) = service.orders.recv() => {
                last = format!("change-{change}");
                push(ResourceType::Address, vec![service.mesh.changed(change)], &last).await;
            }
            else => return,
        }
    }
}

/// A connection as tonic takes one.
struct Secured(TlsStream<TcpStream>);

impl Connected for Secured {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
