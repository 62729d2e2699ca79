import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;

/** Counts changes and acknowledges them: as little as a consumer of Debezium can do. */
public class Count implements DebeziumEngine.ChangeConsumer<ChangeEvent<String, String>> {
  public final AtomicLong changes = new AtomicLong();

  @Override
  public void handleBatch(
      List<ChangeEvent<String, String>> batch,
      DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
      throws InterruptedException {
    long read = 0;
    for (ChangeEvent<String, String> change : batch) {
      if (change.value() != null) {
        read++;
      }
      committer.markProcessed(change);
    }
    committer.markBatchFinished();
    changes.addAndGet(read);
  }
}
