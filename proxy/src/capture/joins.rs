//! The conversation's part in the kernel tier: wishes to have flows joined go to the agent, its answers to the flows.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use underpass_ebpf::tier::FlowMemory;
use underpass_ebpf_abi::tier::MAX_FLOWS;

use super::conversation::{Ended, say};
use crate::handover::{FromProxy, Side};
use crate::offload::{Agency, InKernel, JoinOrder, Member, Offload, Refusal, Reply, Ticket, ToAgent, WhyNot};

/// A flow that there never is: asked for it, the kernel measures nothing.
const NO_FLOW: Ticket = Ticket {
    index: 0,
    generation: 0,
};

/// The flows that the agent is asked for in one conversation. Dropping it answers all that wait: there is no agent any more.
#[derive(Debug)]
pub(super) struct Joins {
    offload: Arc<Offload>,
    memory: Option<Arc<FlowMemory>>,
    /// By which joined flows say that they have ended.
    to_agent: UnboundedSender<ToAgent>,
    waiting: HashMap<u64, Reply>,
    asked: u64,
}

impl Joins {
    /// With what the agent said and handed over when it welcomed us.
    pub(super) fn new(
        offload: Arc<Offload>,
        to_agent: UnboundedSender<ToAgent>,
        (tier_off, blind): (Option<String>, Option<String>),
        descriptors: Option<[OwnedFd; 2]>,
    ) -> Self {
        let memory = match (tier_off, descriptors) {
            (Some(reason), _) => Err(reason),
            (None, None) => Err("the agent handed over no memory for it".to_owned()),
            (None, Some(descriptors)) => open(descriptors),
        };
        let agency = match &memory {
            Ok(_) => Agency::Joins {
                agent: to_agent.clone(),
                blind,
            },
            Err(reason) => {
                tracing::info!(%reason, "connections stay out of the kernel");
                Agency::Off(reason.clone())
            }
        };
        offload.set_agency(agency);
        Self {
            offload,
            memory: memory.ok(),
            to_agent,
            waiting: HashMap::new(),
            asked: 0,
        }
    }

    /// Tells the agent.
    pub(super) async fn tell(&mut self, socket: &AsyncFd<OwnedFd>, wish: ToAgent) -> Result<(), Ended> {
        match wish {
            ToAgent::Join(order) => {
                let JoinOrder {
                    downstream,
                    upstream,
                    limit,
                    answer,
                } = order;
                self.asked += 1;
                let (id, limit) = (self.asked, limit.0);
                self.waiting.insert(id, answer);
                let sockets = [downstream.as_fd(), upstream.as_fd()];
                say(socket, &FromProxy::Join { id, limit }, &sockets).await?;
            }
            ToAgent::Left(Ticket { index, generation }) => {
                say(socket, &FromProxy::Left { index, generation }, &[]).await?;
            }
        }
        Ok(())
    }

    /// Gives the agent's answer to who waits for it.
    pub(super) fn joined(&mut self, id: u64, ticket: Ticket) -> Result<(), Ended> {
        let reply = self.reply(id)?;
        let Some(memory) = self.memory.as_ref().filter(|_| ticket.index < MAX_FLOWS) else {
            return Err(Ended::Misunderstood("a flow in a place that there is not"));
        };
        let member = Member::new(memory, ticket, self.to_agent.clone());
        reply.send(Ok(Arc::new(InKernel::new(Box::new(member), memory.clone()))));
        Ok(())
    }

    /// As [`Joins::joined`].
    pub(super) fn not_joined(&mut self, id: u64, reason: &str, side: Option<Side>, again: bool) -> Result<(), Ended> {
        let why = WhyNot::from_agent(reason);
        self.reply(id)?.send(Err(Refusal { why, side, again }));
        Ok(())
    }

    fn reply(&mut self, id: u64) -> Result<Reply, Ended> {
        let waiting = self.waiting.remove(&id);
        waiting.ok_or(Ended::Misunderstood("an answer to no question"))
    }
}

impl Drop for Joins {
    fn drop(&mut self) {
        self.offload.set_agency(Agency::NoAgent);
    }
}

/// The flows' memory. That queues can be measured is tried now: a flow whose receivers' queues are not known must not be joined.
fn open([flows, measure]: [OwnedFd; 2]) -> Result<Arc<FlowMemory>, String> {
    let memory = FlowMemory::from_fds(flows, measure)
        .map_err(|error| format!("the memory of the kernel's flows cannot be used: {error}"))?;
    let measured = memory.measure(&[NO_FLOW]);
    measured.map_err(|error| format!("this process may not ask the kernel how long queues are: {error}"))?;
    Ok(Arc::new(memory))
}

/// Forgets the wishes that were meant for an agent that is gone, and keeps what its successor has to know.
pub(super) fn left_behind(wishes: &mut UnboundedReceiver<ToAgent>) -> Vec<ToAgent> {
    std::iter::from_fn(|| wishes.try_recv().ok())
        .filter(|wish| matches!(wish, ToAgent::Left(_)))
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn a_new_agent_is_told_of_flows_that_ended_while_there_was_none() {
        let (to_agent, mut wishes) = unbounded_channel();
        let ended = Ticket {
            index: 5,
            generation: 2,
        };
        to_agent.send(ToAgent::Left(ended)).unwrap();
        let told = left_behind(&mut wishes);
        assert!(matches!(told[..], [ToAgent::Left(ticket)] if ticket == ended));
        assert!(left_behind(&mut wishes).is_empty());
    }

    #[test]
    fn without_its_memory_the_tier_is_off_until_the_next_agent() {
        let offload = Arc::new(Offload::default());
        let joins = |tier_off| Joins::new(offload.clone(), unbounded_channel().0, (tier_off, None), None);
        let off = joins(Some("no BTF".to_owned()));
        assert_eq!(offload.state(false), ("off", Some("no BTF".to_owned())));
        drop(off);
        assert_eq!(offload.state(false), ("no_agent", None));
        let _off = joins(None);
        assert_eq!(offload.state(false).0, "off");
    }

    #[test]
    fn an_answer_to_no_question_ends_the_conversation() {
        let offload = Arc::new(Offload::default());
        let mut joins = Joins::new(offload, unbounded_channel().0, (None, None), None);
        assert!(joins.not_joined(1, "blocking", None, false).is_err());
        assert!(joins.joined(1, NO_FLOW).is_err());
    }
}
