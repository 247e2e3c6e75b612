//! What becomes of an event that cannot be handled: its shard waits, or it is set aside; and how events that were parked are handled again.

use tokio::time::Instant;

use super::{
    super::{
        batch_size::Fault,
        error::ProjectorError,
        event::Event,
        input::{EventReader, Unreadable},
        output::{Advance, Poisoned, ReadModel, Replayed, SetAside},
        stuck::Tried,
    },
    Worker,
};
use crate::api::OnPoison;

/// An event is tried so often without any other before it is set aside.
const TRIED_ALONE: u32 = 3;
/// The class of the error of an event that cannot be read.
const UNREADABLE: &str = "unreadable";

impl<R: EventReader, M: ReadModel> Worker<R, M> {
    /// Lets the shard of an event whose handler failed wait, or sets the event aside.
    pub(super) async fn event_failed(
        &mut self,
        event: &Event,
        is_alone: bool,
        message: String,
        fault: Fault,
    ) -> Result<(), ProjectorError> {
        let at = (event.shard, event.position);
        let place = self.reader.place(event.shard, event.position);
        // Only what is its own fault counts towards setting it aside.
        let counts = is_alone && matches!(fault, Fault::Event(_));
        let why = match fault {
            Fault::NoRoom => self.too_many("the event behind parked ones of its stream", place),
            Fault::Event(class) if is_alone && self.is_given_up(at) => {
                let poisoned = self.poisoned(at, (Some(event), event.stream.as_deref()), (&message, &class));
                match self.set_aside(&poisoned).await? {
                    None => return Ok(()),
                    Some(SetAside::NoRoom) => {
                        self.too_many(&format!("the event of type {} ({message})", event.event_type), place)
                    }
                    Some(refused) => {
                        let message = format!("{message}; {}", not_kept(&refused));
                        ProjectorError::EventFailed { event_type: event.event_type.clone(), place, message }
                    }
                }
            }
            Fault::Event(_) | Fault::Unknown => {
                ProjectorError::EventFailed { event_type: event.event_type.clone(), place, message }
            }
        };
        self.hold(at, counts, &why).await
    }

    /// The same with an event that cannot be read. `is_alone` says that no other was to be read.
    pub(super) async fn unreadable(&mut self, unreadable: Unreadable, is_alone: bool) -> Result<(), ProjectorError> {
        let Unreadable { position, shard, why: mut message, stream, is_alone_there } = unreadable;
        let at = (shard, position);
        let place = self.reader.place(shard, position);
        let breaks_order = self.poison.on_poison == OnPoison::Park && self.poison.park_stream && stream.is_none();
        if breaks_order {
            message.push_str(". It is not parked, since its stream is not known, whose later events would have to be parked behind it (spec.failure.parkStream)");
        }
        let mut why = None;
        if is_alone && is_alone_there && !breaks_order && self.is_given_up(at) {
            let poisoned = self.poisoned(at, (None, stream.as_deref()), (&message, UNREADABLE));
            match self.set_aside(&poisoned).await? {
                None => return Ok(()),
                Some(SetAside::NoRoom) => {
                    why = Some(self.too_many(&format!("the event that cannot be read ({message})"), place.clone()));
                }
                Some(refused) => message = format!("{message}; {}", not_kept(&refused)),
            }
        }
        let why = why.unwrap_or(ProjectorError::Unreadable { place, message });
        self.hold(at, is_alone, &why).await?;
        // Its checkpoint may be moved beyond it by hand.
        self.reload().await
    }

    fn too_many(&self, what: &str, place: String) -> ProjectorError {
        ProjectorError::TooManyParked { what: what.to_owned(), place, most: self.poison.max_parked }
    }

    /// Whether an event that has failed now without any other is not to be tried again.
    fn is_given_up(&self, (shard, position): (u32, i64)) -> bool {
        let tried = self.stuck.tried(shard, position, Instant::now());
        self.poison.on_poison != OnPoison::Pause && tried.alone.saturating_add(1) >= TRIED_ALONE
    }

    fn poisoned<'a>(
        &self,
        (shard, position): (u32, i64),
        (event, stream): (Option<&'a Event>, Option<&'a str>),
        (reason, class): (&'a str, &'a str),
    ) -> Poisoned<'a> {
        let Tried { times, since, .. } = self.stuck.tried(shard, position, Instant::now());
        Poisoned {
            shard,
            position,
            place: self.reader.place(shard, position),
            event,
            stream,
            reason,
            class,
            attempts: times.saturating_add(1),
            failing_for: since.elapsed(),
        }
    }

    /// Sets an event aside. Returns what kept it from that; nothing where it is done, or no matter of this worker any more.
    async fn set_aside(&mut self, poisoned: &Poisoned<'_>) -> Result<Option<SetAside>, ProjectorError> {
        let Poisoned { shard, position, place, class, attempts, .. } = poisoned;
        let Some(held) = self.held.get(shard).copied() else { return Ok(None) };
        let advance = Advance::to(*position, *shard, held);
        match self.model.set_aside(poisoned, advance).await? {
            SetAside::Done => {
                tracing::warn!(shard, place, class, attempts, done = ?self.poison.on_poison, "an event that failed each time was set aside");
                self.stuck.forget(*shard);
                self.committed(&[advance]);
                Ok(None)
            }
            SetAside::Lost => self.reload().await.map(|()| None),
            other => Ok(Some(other)),
        }
    }

    /// Handles an event again that was parked, if one is to be. Returns whether there may be more.
    pub(super) async fn replay(&mut self) -> Result<bool, ProjectorError> {
        match self.model.replay(&self.held).await? {
            Replayed::Nothing => return Ok(false),
            Replayed::Handled { shard, place } => tracing::info!(shard, place, "an event that was parked was handled"),
            Replayed::Failed { shard, place, why } => {
                tracing::warn!(
                    shard,
                    place,
                    "an event that was parked failed again, and its stream stays parked: {why}"
                );
            }
            Replayed::Lost => self.reload().await?,
        }
        Ok(true)
    }
}

fn not_kept(why: &SetAside) -> String {
    match why {
        SetAside::Refused(why) => format!("it could not be set aside: {why}"),
        _ => "it could not be set aside".to_owned(),
    }
}
