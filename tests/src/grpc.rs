//! grpc-go's interoperability client and server, which try each other by gRPC's own test cases.

use std::path::PathBuf;

use crate::requirement::built_by;

/// Where the two are.
#[derive(Clone, Debug)]
pub struct Interop {
    /// `--server_host=… --server_port=… --test_case=…`: fails if the case does.
    pub client: PathBuf,
    /// `--port=…`, on each address that there is.
    pub server: PathBuf,
}

/// Both, if they are there.
pub fn interop() -> Option<Interop> {
    let client = built_by("grpc-setup.sh")?;
    let server = client.with_file_name("server");
    Some(Interop { client, server })
}
