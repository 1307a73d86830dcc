//! An istiod in this process: the test says what it sends, and sees what it is told.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use underpass_xds_client::ResourceType;
use underpass_xds_client::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use underpass_xds_client::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use underpass_xds_client::proto::istio::security::{Authorization, Scope};
use underpass_xds_client::proto::istio::workload::{self as wds, Address, Service, Workload};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub struct Peer {
    pub address: SocketAddr,
    streams: mpsc::Receiver<ServerStream>,
}

impl Peer {
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(8);
        let service = AggregatedDiscoveryServiceServer::new(Ads(sender)).max_decoding_message_size(64 << 20);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { address, streams }
    }

    pub async fn stream(&mut self) -> ServerStream {
        soon("a stream", self.streams.recv()).await.unwrap()
    }
}

/// One stream, seen from istiod.
pub struct ServerStream {
    pub metadata: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    sent: u64,
}

impl ServerStream {
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon("a request", self.requests.message()).await.unwrap().unwrap()
    }

    /// The subscriptions with which every stream begins.
    pub async fn subscriptions(&mut self) -> [DeltaDiscoveryRequest; 2] {
        [self.request().await, self.request().await]
    }

    /// Sends a response and returns its nonce.
    pub async fn send(&mut self, mut response: DeltaDiscoveryResponse) -> String {
        self.sent += 1;
        response.nonce = format!("nonce-{}", self.sent);
        let nonce = response.nonce.clone();
        self.responses.send(Ok(response)).await.unwrap();
        nonce
    }

    /// Sends a response and waits for the answer to it.
    pub async fn ask(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let nonce = self.send(response).await;
        let answer = self.request().await;
        assert_eq!(answer.response_nonce, nonce);
        answer
    }

    pub async fn acked(&mut self, response: DeltaDiscoveryResponse) {
        assert_eq!(self.ask(response).await.error_detail, None);
    }

    pub async fn refuse(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }

    /// Whether a response could be put on its way now.
    pub fn has_room(&self) -> bool {
        self.responses.capacity() > 0
    }

    /// The next request, if one is there within `time`.
    pub async fn request_within(&mut self, time: Duration) -> Option<DeltaDiscoveryRequest> {
        Some(timeout(time, self.requests.message()).await.ok()?.unwrap().unwrap())
    }
}

struct Ads(mpsc::Sender<ServerStream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (responses, outgoing) = mpsc::channel(1);
        let stream = ServerStream {
            metadata,
            requests,
            responses,
            sent: 0,
        };
        self.0.send(stream).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

pub fn resource(kind: ResourceType, name: &str, version: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(prost_types::Any {
            type_url: kind.url().into(),
            value,
        }),
        aliases: Vec::new(),
    }
}

pub fn response(kind: ResourceType, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.url().into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

/// Workload `name` of namespace `shop`, an endpoint of service `web`.
pub fn workload(name: &str, change: impl FnOnce(&mut Workload)) -> Workload {
    let mut workload = Workload {
        uid: name.into(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        services: [("shop/web".to_owned(), wds::PortList::default())].into(),
        ..Default::default()
    };
    change(&mut workload);
    workload
}

pub fn workload_resource(version: &str, workload: Workload) -> Resource {
    let name = workload.uid.clone();
    let address = Address {
        r#type: Some(wds::address::Type::Workload(workload)),
    };
    resource(ResourceType::Address, &name, version, address.encode_to_vec())
}

pub fn service_resource(version: &str) -> Resource {
    let service = Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web".into(),
        ..Default::default()
    };
    let address = Address {
        r#type: Some(wds::address::Type::Service(service)),
    };
    resource(ResourceType::Address, "shop/web", version, address.encode_to_vec())
}

/// Policy `shop/NAME`, without groups: as ALLOW it lets nobody in.
pub fn policy_resource(name: &str, scope: Scope) -> Resource {
    let policy = Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: scope as i32,
        ..Default::default()
    };
    resource(
        ResourceType::Authorization,
        &format!("shop/{name}"),
        "",
        policy.encode_to_vec(),
    )
}
