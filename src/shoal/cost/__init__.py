"""What a run or an answer costs: meter, receipt, hardware prices."""
