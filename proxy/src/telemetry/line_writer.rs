//! A thread that writes lines to a file or terminal, so that the cores never wait for either.
//!
//! Its one idea is not to be woken for each line. A thread that waits on its queue must be woken by whoever adds to it, and on a
//! busy core that wake-up costs more than the line. So after each batch it sleeps a moment and takes what has come meanwhile:
//! the cores add to a queue that nobody waits on. Only the first line after an idle time wakes it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that may wait to be written; with [`PAUSE`] this is room for more than a million lines a second.
const QUEUED_LINES: usize = 16 * 1024;

/// The pause after a batch, and so the longest that a line is late.
const PAUSE: Duration = Duration::from_millis(10);

/// A bounded queue of lines and the thread that writes them.
#[derive(Debug)]
pub(super) struct LineWriter {
    /// Nothing ends it.
    queue: SyncSender<Option<String>>,
    dropped: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl LineWriter {
    /// Starts the thread. What is not written is added to `dropped`: the queue was full, or the write failed.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(out: impl Write + Send + 'static, dropped: Arc<AtomicU64>) -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUED_LINES);
        let lost = dropped.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_batches(&lines, out, &lost))?;
        Ok(Self { queue, dropped, thread })
    }

    /// Queues a line; counts it as dropped when the queue is full.
    pub(super) fn write(&self, line: String) {
        if self.queue.try_send(Some(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes out what is queued, if the destination takes it by the deadline; what comes later is dropped. (Merely dropped, the writer does the
    /// same, but nobody waits for it: whoever drops it may be serving connections.)
    pub(super) fn finish(&self, deadline: Instant) {
        let mut is_told = false;
        while !self.thread.is_finished() && Instant::now() < deadline {
            is_told = is_told || !matches!(self.queue.try_send(None), Err(TrySendError::Full(_)));
            std::thread::sleep(PAUSE / 10);
        }
    }
}

fn write_batches(lines: &Receiver<Option<String>>, mut out: impl Write, dropped: &AtomicU64) {
    while let Ok(Some(first)) = lines.recv() {
        let mut is_open = true;
        let mut batch = first;
        let mut count = 1;
        for line in lines.try_iter().take(QUEUED_LINES) {
            let Some(line) = line else {
                is_open = false;
                break;
            };
            batch.push_str(&line);
            count += 1;
        }
        if out.write_all(batch.as_bytes()).and_then(|()| out.flush()).is_err() {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
        if !is_open {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_before_the_writer_is_gone() {
        let memory = Memory::default();
        let dropped = Arc::<AtomicU64>::default();
        let writer = LineWriter::start(memory.clone(), dropped.clone()).unwrap();
        let lines: Vec<_> = (0..5000).map(|n| format!("line {n}\n")).collect();
        for line in &lines {
            writer.write(line.clone());
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
        writer.finish(Instant::now() + Duration::from_secs(30));
        assert_eq!(
            String::from_utf8(memory.0.lock().unwrap().clone()).unwrap(),
            lines.concat()
        );
    }

    /// Takes a lock before it writes, as a stuck disk would.
    struct Stuck(Arc<Mutex<()>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _wait = self.0.lock().unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_destination_drops_lines_and_counts_them() {
        let stuck = Arc::new(Mutex::new(()));
        let held = stuck.lock().unwrap();
        let dropped = Arc::<AtomicU64>::default();
        let writer = LineWriter::start(Stuck(stuck.clone()), dropped.clone()).unwrap();
        let more_than_fits = 3 * QUEUED_LINES;
        for _ in 0..more_than_fits {
            writer.write("line\n".to_owned());
        }
        let dropped = dropped.load(Ordering::Relaxed);
        // What is not dropped is in the queue, or in the batch that is stuck.
        assert!(dropped >= (more_than_fits - 2 * QUEUED_LINES - 1) as u64, "{dropped}");
        writer.finish(Instant::now() + Duration::from_millis(1));
        drop(held);
    }
}
