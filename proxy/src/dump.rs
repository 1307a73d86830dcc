//! The commands that look at what istiod says without serving it: `underpass config dump` and `underpass check`.
//!
//! istiod is asked as the proxy of a configuration: with its name, its token and its role. Nothing is captured, and nobody is served.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_config::{NodeSettings, Premises};
use underpass_xds_client::{BadDump, Connection, Dump, Recorder, ResourceType, Status};

use crate::configuration::Origin;
use crate::istiod::{Feed, Replay, Standing};
use crate::run::{self, StartError};

/// How long istiod may take to tell everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: {source}; write it with `underpass config dump`", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BadDump,
    },
    /// There is no istiod to ask.
    #[error("the configuration names no istiod: add `node.istiod`")]
    NoIstiod,
    /// istiod does not tell everything.
    #[error(
        "istiod has not told everything within {}: {reason}",
        humantime::format_duration(PATIENCE)
    )]
    Untold {
        /// How the connection to it stands.
        reason: String,
    },
}

/// What a file has that [`write`] has written.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn replay(path: &Path) -> Result<Replay, DumpError> {
    let text = std::fs::read_to_string(path).map_err(|source| DumpError::File {
        path: path.into(),
        source,
    })?;
    let dump = Dump::from_json(&text).map_err(|source| DumpError::Bad {
        path: path.into(),
        source,
    })?;
    Ok(Replay {
        dump,
        file: path.display().to_string(),
    })
}

/// Writes down what istiod tells the proxy of a configuration, to a file or to standard output.
///
/// # Errors
/// When istiod does not tell everything, or the file cannot be written.
pub fn write(origin: &Origin, premises: &Premises, output: Option<&Path>) -> Result<(), StartError> {
    let (_, loaded) = run::load(origin, premises)?;
    let recorder = Recorder::default();
    told(&loaded.node, None, Some(&recorder))?;
    let dump = recorder.dump();
    let text = format!("{:#}\n", dump.to_json());
    let Some(path) = output else {
        print!("{text}");
        return Ok(());
    };
    std::fs::write(path, text).map_err(|source| DumpError::File {
        path: path.into(),
        source,
    })?;
    let counts = ResourceType::ALL.map(|kind| format!("{} {kind}", dump.count(kind)));
    println!("{}: {}", path.display(), counts.join(", "));
    Ok(())
}

/// What of what istiod says is not served as it is meant.
#[derive(Debug)]
pub struct Report {
    status: Status,
}

impl Report {
    /// Whether all of it is.
    pub fn is_all_served(&self) -> bool {
        self.status.rejected_count == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, of_type) in &self.status.types {
            writeln!(f, "{kind}: {} resources", of_type.resources)?;
        }
        for (kind, name, why) in &self.status.rejected {
            writeln!(f, "CLOSED {kind} {name}: {why}")?;
        }
        let listed = self.status.rejected.len();
        match self.status.rejected_count.saturating_sub(listed) {
            0 if listed == 0 => writeln!(f, "all of it is served"),
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

/// Looks at what istiod tells the proxy of a configuration, or has told once.
///
/// # Errors
/// When istiod does not tell everything, or the file cannot be read.
pub fn check(origin: &Origin, premises: &Premises, replayed: Option<&Path>) -> Result<Report, StartError> {
    let (_, loaded) = run::load(origin, premises)?;
    let replayed = replayed.map(replay).transpose()?;
    let standing = told(&loaded.node, replayed.as_ref(), None)?;
    Ok(Report {
        status: standing.read(),
    })
}

/// Waits until everything was told.
fn told(node: &NodeSettings, replayed: Option<&Replay>, recorder: Option<&Recorder>) -> Result<Standing, StartError> {
    let (feeds, standing) = Feed::all(node, replayed, recorder);
    let standing = standing.ok_or(DumpError::NoIstiod)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut telling = tokio::task::JoinSet::new();
        for feed in feeds {
            telling.spawn(feed.until_told());
        }
        let _ = tokio::time::timeout(PATIENCE, telling.join_all()).await;
    });
    let status = standing.read();
    match (status.synced, &status.connection) {
        (true, _) => Ok(standing),
        (false, Connection::Disconnected { reason, .. }) => Err(DumpError::Untold { reason: reason.clone() }.into()),
        (false, _) => {
            let came: Vec<String> = status.types.keys().map(ToString::to_string).collect();
            let reason = format!("it is connected, and has told of: {}", came.join(", "));
            Err(DumpError::Untold { reason }.into())
        }
    }
}
