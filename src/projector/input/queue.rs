//! Where messages come from that have no positions: the seam between the worker and the kinds of queue.

use std::{future::Future, time::Duration};

use super::super::{error::ProjectorError, event::Event};

/// A queue, of which any worker may be given any message. What was given and not acknowledged is given again, to this worker or to another.
pub(in crate::projector) trait Queue: Send {
    /// What names a message to the queue.
    type Receipt: Clone + Send + Sync;

    /// What this worker must do for messages in hand, so that they are given to no other: [`Queue::renew`] them this often.
    fn renew_every(&self) -> Duration;

    /// Takes about so many messages, those first that others left behind. None where there are none at present.
    fn fetch(
        &mut self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Delivery<Self::Receipt>>, ProjectorError>> + Send;

    /// Keeps messages from being given to others for a while.
    fn renew(&mut self, held: &[Self::Receipt]) -> impl Future<Output = Result<(), ProjectorError>> + Send;

    /// Tells that these messages are done.
    fn acknowledge(&mut self, done: &[Self::Receipt]) -> impl Future<Output = Result<(), ProjectorError>> + Send;

    /// Gives messages back, to be given to any worker after about this pause.
    fn put_back(
        &mut self,
        held: &[Self::Receipt],
        pause: Duration,
    ) -> impl Future<Output = Result<(), ProjectorError>> + Send;

    /// Where a message is, for people.
    fn place(&self, receipt: &Self::Receipt) -> String;

    /// Leaves nothing behind where that loses nothing. A failure is no matter.
    fn finish(&mut self) -> impl Future<Output = ()> + Send;
}

/// A message that this worker was given.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Delivery<Receipt> {
    /// Names the message among all of its projection, whenever and to whomever it is given.
    pub(in crate::projector) id: String,
    /// Names it to the queue.
    pub(in crate::projector) receipt: Receipt,
    /// The event in it, nothing where its type has no handler; or why it cannot be read, without anything of what it holds.
    pub(in crate::projector) content: Result<Option<Event>, String>,
}
