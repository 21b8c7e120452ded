//! `cancel`: give up the open iteration (its prompts return to the pool, its rows stay), or a training
//! job.

use actix_web::{HttpRequest, web};
use rlhfd_domain::{JobKind, JobName};
use rlhfd_protocol::control::check_name;

use super::{Shared, asked, body, order};
use crate::handles::Command;
use crate::listener::{Answer, Refusal};

/// `POST /v1/cancel`
pub async fn post(
    shared: web::Data<Shared>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Answer {
    let body = body(&request, &mut payload, &["iteration", "job"]).await?;
    let wrong = |what: &str, mend: &str| Err(Refusal::new(400, what, asked(&request), mend));
    let command = match (body.iteration, body.job) {
        (Some(_), Some(_)) => return wrong("both an iteration and a job are named", "name one"),
        (None, None) => Command::CancelIteration { iteration: None },
        (Some(iteration), None) => match u32::try_from(iteration) {
            Ok(iteration) if iteration > 0 => {
                Command::CancelIteration { iteration: Some(iteration) }
            }
            _ => return wrong("no iteration has this number", "`rlhfctl iterations` lists them"),
        },
        (None, Some(job)) => {
            let (kind, name) = job.split_once('/').unwrap_or_default();
            let Ok(kind) = JobKind::parse(kind) else {
                return wrong(
                    "the job is not named as sft/NAME, reward/NAME or preference/NAME",
                    "`rlhfctl jobs` lists them",
                );
            };
            let name = check_name("training job", name).map_err(|e| Refusal::with(400, e))?;
            Command::CancelJob { job: JobName { kind, name } }
        }
    };
    order(&shared, &request, command).await
}
