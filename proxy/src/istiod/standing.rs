//! How the streams to istiod stand.

use underpass_xds_client::{Connection, Status, StatusReader};

/// What a stream tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The mesh; and what a waypoint serves, where the proxy is nothing else.
    Mesh,
    /// What the waypoint serves that a node is besides.
    Waypoint,
}

/// The state of each, read by anyone at any time.
#[derive(Clone, Debug)]
pub struct Standing {
    mesh: StatusReader,
    waypoint: Option<StatusReader>,
}

impl Standing {
    /// Of the one stream there is.
    pub fn of_mesh(mesh: StatusReader) -> Self {
        Self { mesh, waypoint: None }
    }

    /// The same with a stream for what a waypoint serves.
    #[must_use]
    pub fn and_of_waypoint(self, waypoint: StatusReader) -> Self {
        Self {
            waypoint: Some(waypoint),
            ..self
        }
    }

    /// That of the stream that tells of `told`; none: there is none.
    pub fn reader(&self, told: Told) -> Option<&StatusReader> {
        match told {
            Told::Mesh => Some(&self.mesh),
            Told::Waypoint => self.waypoint.as_ref(),
        }
    }

    /// Both together: connected if both are, and synced if both are.
    pub fn read(&self) -> Status {
        let mut status = self.mesh.read();
        let Some(other) = self.waypoint.as_ref().map(StatusReader::read) else {
            return status;
        };
        if matches!(status.connection, Connection::Connected { .. }) {
            status.connection = other.connection;
        }
        status.synced &= other.synced;
        status.disconnects += other.disconnects;
        for (why, count) in other.terminations {
            *status.terminations.entry(why).or_default() += count;
        }
        // No type is asked for by both.
        status.types.extend(other.types);
        status.rejected.extend(other.rejected);
        status.rejected.truncate(Status::LISTED_REJECTIONS);
        status.rejected_count += other.rejected_count;
        status.rejected_updates += other.rejected_updates;
        status.waiting = status.waiting.or(other.waiting);
        status
    }
}
