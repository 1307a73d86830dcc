//! Fresh sockets of a pod's network namespace, kept in small stock.
//!
//! A socket belongs to the namespace of the task that made it, and only the agent may enter a pod's. So the proxy orders them ahead of
//! need: a pod that connects seldom has few, one that connects much has its orders doubled whenever the stock ran out. The stock outlives
//! the agent: while there is none, connections wait for the next one as long as a connect may take.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::handover::{Family, MAX_DESCRIPTORS};

/// The first order, in sockets.
const FIRST_ORDER: u32 = 4;

/// A wish to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which pod.
    pub cookie: u64,
    /// Of which kind.
    pub family: Family,
    /// How many.
    pub count: u32,
}

/// The stock of one pod.
#[derive(Debug)]
pub struct SocketPool {
    cookie: u64,
    v4: Shelf,
    v6: Shelf,
    orders: UnboundedSender<Order>,
}

#[derive(Debug, Default)]
struct Shelf {
    stock: Mutex<Stock>,
    arrived: Notify,
}

#[derive(Debug)]
struct Stock {
    sockets: Vec<OwnedFd>,
    /// On order, not delivered yet.
    ordered: u32,
    /// Size of the last order; the next is twice as large if somebody had to wait since.
    batch: u32,
    ran_out: bool,
    /// Deliveries that were empty.
    failures: u64,
}

impl Default for Stock {
    fn default() -> Self {
        Self {
            sockets: Vec::new(),
            ordered: 0,
            batch: FIRST_ORDER / 2,
            ran_out: false,
            failures: 0,
        }
    }
}

impl SocketPool {
    /// An empty stock of pod `cookie`, which orders by `orders`.
    pub fn new(cookie: u64, orders: UnboundedSender<Order>) -> Self {
        Self {
            cookie,
            v4: Shelf::default(),
            v6: Shelf::default(),
            orders,
        }
    }

    /// A socket; waits for the agent when none is in stock.
    ///
    /// # Errors
    /// When the agent could make none, or the proxy asks for none any more.
    pub async fn take(&self, family: Family) -> io::Result<OwnedFd> {
        let shelf = self.shelf(family);
        let failures = shelf.stock().failures;
        loop {
            let arrived = shelf.arrived.notified();
            let mut arrived = std::pin::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(socket) = self.take_from(shelf, family)? {
                return Ok(socket);
            }
            arrived.await;
            if shelf.stock().failures != failures {
                return Err(io::Error::other(
                    "the agent could not make a socket in the pod's network namespace",
                ));
            }
        }
    }

    /// Orders again what an agent that is gone will not deliver.
    pub fn renew(&self) {
        for family in [Family::V4, Family::V6] {
            let shelf = self.shelf(family);
            let mut stock = shelf.stock();
            let was_waited_for = stock.ordered > 0;
            stock.ordered = 0;
            if was_waited_for {
                self.order(&mut stock, family);
            }
        }
    }

    /// What the agent delivered; nothing, if it could make none.
    pub fn deliver(&self, family: Family, sockets: Vec<OwnedFd>) {
        let shelf = self.shelf(family);
        let mut stock = shelf.stock();
        if sockets.is_empty() {
            stock.failures += 1;
            stock.ordered = 0;
        } else {
            stock.ordered = stock.ordered.saturating_sub(sockets.len() as u32);
            stock.sockets.extend(sockets);
        }
        drop(stock);
        shelf.arrived.notify_waiters();
    }

    fn take_from(&self, shelf: &Shelf, family: Family) -> io::Result<Option<OwnedFd>> {
        let mut stock = shelf.stock();
        let socket = stock.sockets.pop();
        stock.ran_out |= socket.is_none();
        if stock.ordered == 0 && stock.sockets.len() < stock.batch as usize / 2 + 1 {
            self.order(&mut stock, family);
            if stock.ordered == 0 && socket.is_none() {
                return Err(io::Error::other("no more sockets are asked of the agent"));
            }
        }
        Ok(socket)
    }

    fn order(&self, stock: &mut Stock, family: Family) {
        let count = if stock.ran_out {
            (2 * stock.batch).min(MAX_DESCRIPTORS as u32)
        } else {
            stock.batch
        };
        let cookie = self.cookie;
        if self.orders.send(Order { cookie, family, count }).is_ok() {
            (stock.ordered, stock.batch, stock.ran_out) = (count, count, false);
        }
    }

    fn shelf(&self, family: Family) -> &Shelf {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Shelf {
    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    fn sockets(count: usize) -> Vec<OwnedFd> {
        let one = || OwnedFd::from(UnixStream::pair().unwrap().0);
        (0..count).map(|_| one()).collect()
    }

    #[tokio::test]
    async fn a_socket_is_ordered_when_needed_and_the_stock_grows_with_the_need() {
        let (orders, mut ordered) = unbounded_channel();
        let pool = SocketPool::new(7, orders);
        let use_them = async {
            loop {
                pool.take(Family::V4).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let serve = async {
            let mut counts = Vec::new();
            while counts.len() < 6 {
                let order = ordered.recv().await.unwrap();
                assert_eq!((order.cookie, order.family), (7, Family::V4));
                counts.push(order.count);
                // Late, but for the first: the stock is used up, and somebody waits.
                while counts.len() > 1 && !pool.v4.stock().ran_out {
                    tokio::task::yield_now().await;
                }
                pool.deliver(Family::V4, sockets(order.count as usize));
            }
            counts
        };
        let counts: Vec<u32> = tokio::select! {
            counts = serve => counts,
            () = use_them => unreachable!("it has no end"),
        };
        assert_eq!(counts, [4, 4, 8, 16, 32, 64]);
    }

    #[tokio::test]
    async fn an_empty_delivery_fails_those_who_wait() {
        let (orders, mut ordered) = unbounded_channel();
        let pool = SocketPool::new(7, orders);
        let (taken, ()) = tokio::join!(pool.take(Family::V6), async {
            ordered.recv().await.unwrap();
            pool.deliver(Family::V6, Vec::new());
        });
        assert!(taken.unwrap_err().to_string().contains("could not make a socket"));
    }
}
