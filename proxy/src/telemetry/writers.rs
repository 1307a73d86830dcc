//! The files that logs are written to, each opened once: logs of one path share a writer, so that their lines stay whole.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::line_writer::LineWriter;

/// Why an access log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the access log {} cannot be opened for appending: {source}; check {}", path.display(), named_by)]
pub struct AccessLogError {
    path: PathBuf,
    /// What names it.
    named_by: &'static str,
    source: io::Error,
}

/// The writers that somebody writes to.
#[derive(Debug, Default)]
pub(super) struct Writers {
    open: Mutex<Vec<(PathBuf, Weak<LineWriter>)>>,
    /// Paths that could not be opened when that was last tried, and that has been told of.
    unopened: Mutex<BTreeSet<PathBuf>>,
    failures: AtomicU64,
    dropped: Arc<AtomicU64>,
}

impl Writers {
    /// The writer of a path. `named_by`: what its operator looks at if there is none.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub(super) fn open(&self, path: &Path, named_by: &'static str) -> Result<Arc<LineWriter>, AccessLogError> {
        let path = match path.to_str() {
            Some("/dev/stdout") => Path::new("-"),
            _ => path,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, writer)| writer.strong_count() > 0);
        let known = open.iter().find(|(known, _)| known == path);
        if let Some(writer) = known.and_then(|(_, writer)| writer.upgrade()) {
            return Ok(writer);
        }
        let dropped = self.dropped.clone();
        let start = || match path.to_str() {
            // Whatever they are: what is no file can't be opened by such a path (a socket), or would be truncated by others.
            Some("-") => LineWriter::start(io::stdout(), dropped),
            Some("/dev/stderr") => LineWriter::start(io::stderr(), dropped),
            _ => LineWriter::start(OpenOptions::new().create(true).append(true).open(path)?, dropped),
        };
        let writer = Arc::new(start().map_err(|source| AccessLogError {
            path: path.to_owned(),
            named_by,
            source,
        })?);
        open.push((path.to_owned(), Arc::downgrade(&writer)));
        Ok(writer)
    }

    /// The same, where nothing depends on it: that there is none is told once, until there is one, and counted.
    pub(super) fn try_open(&self, path: &Path, named_by: &'static str) -> Option<Arc<LineWriter>> {
        let opened = self.open(path, named_by);
        let mut unopened = self.unopened.lock().unwrap_or_else(PoisonError::into_inner);
        match opened {
            Ok(writer) => {
                unopened.remove(path);
                Some(writer)
            }
            Err(why) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if unopened.insert(path.to_owned()) {
                    tracing::warn!("what is to be logged there is dropped: {why}");
                }
                None
            }
        }
    }

    /// How often a file could not be opened that nothing depends on.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// A line has nowhere to go.
    pub(super) fn drop_line(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Lines that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Gives away those that are open, for whoever ends them.
    pub(super) fn take(&self) -> Vec<Arc<LineWriter>> {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        open.iter().filter_map(|(_, writer)| writer.upgrade()).collect()
    }

    /// Paths that are open.
    #[cfg(test)]
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.iter().filter(|(_, writer)| writer.strong_count() > 0);
        open.map(|(path, _)| path.clone()).collect()
    }
}
