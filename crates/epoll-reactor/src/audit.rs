//! What must hold between turns: for tests, on the simulated kernel above all.

use crate::connection::Phase;
use crate::ctx::Ctx;
use crate::inspect::ConnectionState;
use crate::token::ConnId;

impl Ctx {
    /// Checks the loop's books, between turns: for tests, on the simulated kernel above all.
    ///
    /// # Errors
    /// What does not hold, in words.
    pub fn audit(&self) -> Result<(), String> {
        if self.batching || !self.batch.is_empty() || !self.direct.is_empty() {
            return Err("callbacks' own output was not sent by the end of their turn".into());
        }
        self.overload.as_ref().map_or(Ok(()), |law| law.audit())?;
        let mut sum = 0;
        let mut states = [0; ConnectionState::ALL.len()];
        for token in (0..self.connections.end()).filter_map(|index| self.connections.token_at(index)) {
            let Some(connection) = self.connections.get(token) else { continue };
            let id = ConnId(token);
            if let Some(count) = connection.state().and_then(|state| states.get_mut(state as usize)) {
                *count += 1;
            }
            let (queued, held) = (connection.queued(), connection.held as usize);
            sum += connection.output.as_ref().map_or(0, |queue| queue.charge());
            sum += held + connection.input.as_ref().map_or(0, |tail| tail.held());
            let in_memory = connection.output_in_memory();
            if in_memory > self.limits.output {
                return Err(format!(
                    "{id}: {in_memory} bytes queued, above the limit of {}",
                    self.limits.output
                ));
            }
            if connection.batched {
                return Err(format!("{id}: what it said is left in the batch of a turn that is over"));
            }
            if connection.output.is_some() && queued == 0 {
                return Err(format!("{id}: an empty queue was kept"));
            }
            if connection.in_dirty != self.dirty.contains(&id)
                || connection.in_ready != self.ready.contains(&token)
            {
                return Err(format!("{id}: its marks and the loop's lists disagree"));
            }
            let tail = connection.input.as_ref().map_or(0, |tail| tail.len());
            // Held up, it may be complete messages that wait their turn.
            if tail >= self.limits.input && connection.may_deliver() && !connection.again {
                return Err(format!(
                    "{id}: {tail} bytes left unconsumed, with a limit of {}",
                    self.limits.input
                ));
            }
            if connection.budget_spent && !connection.in_ready {
                return Err(format!("{id}: its output waits for a turn that never comes"));
            }
            let armed = connection.armed;
            if let Some(deadline) = connection.next_deadline(&self.limits)
                && armed.is_none_or(|armed| deadline < armed)
                && !matches!(connection.phase, Phase::Connecting)
            {
                return Err(format!("{id}: a deadline at {deadline:?}, and the timers know of {armed:?}"));
            }
        }
        let tokens = (0..self.connections.end()).filter_map(|index| self.connections.token_at(index));
        self.admission.audit(&self.limits, tokens.filter_map(|token| self.connections.get(token)))?;
        if sum != self.buffered {
            return Err(format!("buffered is {}, and the sum over all connections {sum}", self.buffered));
        }
        for ((state, counted), found) in self.metrics.read().connections().zip(states) {
            if counted != found {
                return Err(format!("{found} connections are {state}, and {counted} are counted"));
            }
        }
        let dying = self.dead.len();
        if self.buffered > self.limits.memory && dying == 0 {
            return Err(format!(
                "{} bytes are held, above the limit of {}",
                self.buffered, self.limits.memory
            ));
        }
        Ok(())
    }
}
