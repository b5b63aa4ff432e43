"""Storage commitment, push model (PS3.4, annex J): a sender asks whether it may erase what it sent.

The report goes over the association of the question, which the sender must keep open for it.
"""

from __future__ import annotations

import threading
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association

from pneumoscope.errors import ImageError
from pneumoscope.images import image_errors
from pneumoscope.serving import jobs
from pneumoscope.serving.association import COMMITMENT
from pneumoscope.serving.intake import Intake
from pneumoscope.serving.logs import logger

INSTANCE = UID("1.2.840.10008.1.20.1.1")  # the well-known instance that is asked
SUCCESS, NO_SUCH_ACTION, INVALID_ARGUMENT = 0x0000, 0x0123, 0x0115  # PS3.7, annex C
_NOT_HERE = 0x0112  # PS3.3, C.14.1.1: no such object instance
_ALL, _SOME_NOT = 1, 2  # PS3.4, J.3.3.1: types of the report


def answer(event: Any, intake: Intake) -> tuple[int, None]:
    """Take a question (N-ACTION), and see to it that the report follows the answer."""
    if event.action_type != 1:
        return NO_SUCH_ACTION, None
    try:
        # PS3.4, table J.3-1: both are required.
        with image_errors("N-ACTION", "the question is damaged", "ask again"):
            asked = event.action_information
            transaction = str(asked.TransactionUID)
            items = [
                (str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in asked.ReferencedSOPSequence
            ]
    except ImageError:
        return INVALID_ARGUMENT, None
    told = report(transaction, items, intake)
    # Sent from another thread once this one has answered: pynetdicom lets it wait so long.
    threading.Thread(target=_send, args=(event.assoc, told), daemon=True).start()
    return SUCCESS, None


def report(transaction: str, items: list[tuple[str, str]], intake: Intake) -> Dataset:
    """Return what is said of objects, each class and instance: committed is an image that lies here, with its row.

    From then on no retention erases it.
    """
    with intake.store.write() as session:
        here = jobs.commit(session, intake.folder, [uid for _, uid in items])
    told = Dataset()
    told.TransactionUID = transaction
    if committed := [_item(*item) for item in items if item[1] in here]:
        told.ReferencedSOPSequence = committed
    if failed := [_item(*item) for item in items if item[1] not in here]:
        for item in failed:
            item.FailureReason = _NOT_HERE
        told.FailedSOPSequence = failed
    return told


def _item(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def _send(association: Association, told: Dataset) -> None:
    kind = _SOME_NOT if "FailedSOPSequence" in told else _ALL
    try:
        association.send_n_event_report(told, kind, COMMITMENT, INSTANCE)
    except (RuntimeError, ValueError) as error:  # it did not wait
        logger("receive").warning("commitment not reported", error=type(error).__name__)
