//! What the simulated worker does wrong when told to.

use pillion_protocol::frame::MemberTokens;
use pillion_protocol::{BatchId, Frame};
use tokio::io::{AsyncRead, AsyncWrite};

use super::running::Running;
use super::session::Session;
use super::{Ending, FaultKind, SessionError};

impl<S: AsyncRead + AsyncWrite> Session<'_, S> {
    pub(super) fn faulty(&self, id: BatchId, kind: FaultKind) -> bool {
        let Some(fault) = self.life.profile.fault else { return false };
        let here = |batch: &Running| batch.id == id && batch.number == fault.batch && batch.steps >= fault.step;
        fault.kind == kind && self.running.iter().any(here)
    }

    /// Does what is to be done wrong before a step of this batch; the ending where that is the connection's end.
    pub(super) async fn misbehave(&mut self, id: BatchId) -> Result<Option<Ending>, SessionError> {
        if self.running.iter().any(|batch| batch.id == id && batch.is_poisoned()) {
            return Ok(Some(Ending::Poison));
        }
        let Some(fault) = self.life.profile.fault else { return Ok(None) };
        if !self.faulty(id, fault.kind) {
            return Ok(None);
        }
        let tokens =
            |batch, member| Frame::Tokens(batch, vec![MemberTokens { member, ids: vec![1], text: "?".into() }]);
        match fault.kind {
            FaultKind::Abort | FaultKind::Close => return Ok(Some(Ending::Fault(fault.kind))),
            FaultKind::Stall => {
                self.running.iter_mut().filter(|batch| batch.id == id).for_each(|batch| batch.due = None);
            }
            FaultKind::Garbage => self.wire.extend_from_slice(b"this is no frame of any kind"),
            FaultKind::HalfFrame => {
                self.put(&tokens(id, 0))?;
                self.wire.truncate(self.wire.len() - 8);
                self.flush().await?;
                return Ok(Some(Ending::Fault(fault.kind)));
            }
            FaultKind::UnknownMember => self.put(&tokens(id, 4000))?,
            FaultKind::UnknownBatch => self.put(&tokens(BatchId(u64::MAX), 0))?,
            FaultKind::AnswerTwice => {}
        }
        Ok(None)
    }
}
