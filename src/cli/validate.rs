use super::error::CliError;
use crate::config::settings::Settings;
use crate::plan::model::Plan;
pub fn run(_settings: &Settings, _plan: &Plan) -> Result<(), CliError> {
    Err(CliError::Validation("x".into()))
}
