"""An experiment as a user writes it, without a server."""

from clearml_client import DvcApi, Logger, init_clearml

task = init_clearml("offline", project="tests/images")
params = task.connect({"rate": 0.5})
logger = Logger.current_logger()
loss = 1.0
for step in range(3):
    loss *= params["rate"]
    logger.report_scalar("loss", "train", value=loss, iteration=step)
assert DvcApi
task.close()
print("REPORTED", loss)
